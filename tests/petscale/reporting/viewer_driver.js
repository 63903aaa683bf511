// What test_viewer.py lets a reader do in the page: every step is noted in the body's data-said, as JSON.
(() => {
  const root = document.getElementById("viewer"), said = [];
  const note = what => said.push([what, root.dataset.at, root.dataset.suv]);
  const picture = new Image();
  picture.src = "http://leaves.invalid/x.png";
  document.body.append(picture);
  fetch("http://leaves.invalid/y").catch(() => said.push(["fetch", "refused", ""]));
  const columns = () => root.querySelectorAll(".head").length;
  const panel = (row, column) => root.querySelectorAll("canvas.panel")[row * columns() + column];
  const wheel = (canvas, by) => canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: by, bubbles: true, cancelable: true }));
  const key = name => root.querySelector(".panels").dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
  const pointer = (canvas, type, x, y, more) => {
    const box = canvas.getBoundingClientRect(), at = { clientX: box.left + x, clientY: box.top + y };
    canvas.dispatchEvent(new PointerEvent(type, { bubbles: true, cancelable: true, ...at, ...more }));
  };
  const copy = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const darkness = canvas => {
    copy.canvas.width = canvas.width; copy.canvas.height = canvas.height; copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    let sum = 0;
    for (let i = 0; i < data.length; i += 4) sum += 255 - data[i];
    return sum;
  };
  const blue = canvas => {  // pixels of a lesion's outline on a PET
    copy.canvas.width = canvas.width; copy.canvas.height = canvas.height; copy.drawImage(canvas, 0, 0);
    const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let i = 0; i < data.length; i += 4) if (data[i + 2] - data[i] > 80) count++;
    return count;
  };
  let before = 0;
  const FULL = 2, CORONAL = 1, PROJECTION = 3;
  const steps = [
    () => { note("start"); root.querySelectorAll("[data-part=lesions] button")[1].click(); },
    () => { note("lesion 2"); wheel(panel(0, 0), 100); },
    () => { note("wheel"); wheel(panel(0, 0), -100); },
    () => { note("back"); key("ArrowRight"); },
    () => {
      note("key");
      before = darkness(panel(CORONAL, FULL));
      pointer(panel(0, 0), "pointerdown", 9, 60, { button: 2 });
      pointer(panel(0, 0), "pointermove", 9, 10, {});
      pointer(panel(0, 0), "pointerup", 9, 10, {});
    },
    () => {
      note("window");
      said.push(["darker", String(darkness(panel(CORONAL, FULL)) > before), ""]);
      const full = panel(PROJECTION, FULL), [x, y] = [full.clientWidth / 2, full.clientHeight * 4.5 / 14];
      pointer(full, "pointerdown", x, y, {});
      pointer(full, "pointerup", x, y, {});
    },
    () => { note("projection"); wheel(panel(PROJECTION, 0), 100); },
    () => {
      said.push(["values", [...root.querySelectorAll("output")].map(one => one.textContent).join(";"), ""]);
      said.push(["where", root.querySelector("[data-part=where]").textContent, ""]);
      root.querySelector("[data-part=columns] input").click();
      root.querySelectorAll("[data-part=lesions] button")[1].click();
    },
    () => {
      before = blue(panel(0, 0));
      root.querySelector("[data-part=outlines]").click();
    },
    () => {
      said.push(["outlined", String(before), String(blue(panel(0, 0)) > 10)]);
      root.querySelector("[data-part=outlines]").click();
    },
    () => {
      said.push(["columns", String(columns()), String(root.querySelectorAll("canvas.panel").length)]);
      document.body.dataset.said = JSON.stringify(said);
    },
  ];
  const timer = setInterval(() => {
    if (root.dataset.error) { document.body.dataset.said = JSON.stringify([["error", root.dataset.error, ""]]); clearInterval(timer); }
    if (root.dataset.state !== "ready") return;
    if (steps.length) steps.shift()(); else clearInterval(timer);
  }, 40);
})();
