// The viewer of a report: all images of a case in linked slices and projections, drawn on 2D canvases.
// It needs no WebGL and asks for nothing outside the page. Axes everywhere: 0 from the patient's right to the left,
// 1 from front to back, 2 from head to foot; pictures are radiological, as the static ones are.
(() => {
  const root = document.getElementById("viewer");
  if (!root) return;
  const find = name => root.querySelector(`[data-part="${name}"]`);
  const failed = what => { root.dataset.error = what; find("state").textContent = "The viewer stopped: " + what; };
  addEventListener("error", event => failed(event.message));
  addEventListener("unhandledrejection", event => failed(String(event.reason)));
  const told = JSON.parse(document.getElementById("viewer-json").textContent);
    const make = (tag, words = {}, ...children) => { const made = Object.assign(document.createElement(tag), words); made.append(...children); return made; };
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

  const ENDS = [["R", "L"], ["A", "P"], ["H", "F"]];
  const PLANES = [
    { name: "Transaxial", column: 0, row: 1, across: 2 },
    { name: "Coronal", column: 0, row: 2, across: 1 },
    { name: "Sagittal", column: 1, row: 2, across: 0 },
  ];
  const ANGLES = 24;  // projections over half a turn; the other half are their mirror images
  const HIGHEST_PANEL = 330, GAP = 6, NOTHING = -32768;
  const CT_WINDOWS = { "soft tissue": told.ct_window, lung: [-1350, 150], bone: [-450, 1050] };
  const LINES = ["#0072b2", "#d55e00", "#009e73", "#22303c", "#cc79a7"];  // Okabe and Ito
  const DASHES = [[6, 3], [2, 2], [], [], [8, 3, 2, 3]];

  const bytesOf = text => { const raw = atob(text), bytes = new Uint8Array(raw.length); for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i); return bytes; };
  const palettes = {};
  for (const [name, text] of Object.entries(told.colours)) {
    const rgb = bytesOf(text);
    palettes[name] = Uint32Array.from({ length: 256 }, (_, i) => 0xff000000 | rgb[3 * i + 2] << 16 | rgb[3 * i + 1] << 8 | rgb[3 * i]);
  }

  const state = {
    at: [0, 0, 0], suv: [...told.suv_window], difference: told.difference_window, sd: told.difference_window / 2,
    ct: "soft tissue", zoom: 1, angle: 0, share: 0.5, fused: 0, hidden: new Set(), plane: 0,
    smooth: true, outlines: false, along: "0", line: null, drawing: false,
  };
  let current = null, panels = [], outputs = [], timer = null, waiting = false;

  // ---- voxels

  async function decoded(image, shape) {
    const stream = new Blob([bytesOf(image.voxels)]).stream().pipeThrough(new DecompressionStream("deflate"));
    const bytes = new Uint8Array(await new Response(stream).arrayBuffer());
    const plane = shape[1] * shape[2], values = new Int16Array(shape[0] * plane);
    for (let z = 0; z < shape[0]; z++) {
      const low = 2 * z * plane, high = low + plane;
      for (let i = 0; i < plane; i++) values[z * plane + i] = bytes[low + i] | bytes[high + i] << 8;
    }
    return values;
  }

  async function opened(about) {
    const [, ny, nx] = about.shape, stored = [ny * nx, nx, 1], flipped = about.positive;
    const n = about.axes.map(axis => about.shape[axis]), mm = about.axes.map(axis => about.spacing_mm[axis]);
    const grid = { n, mm, stride: about.axes.map((axis, a) => flipped[a] ? -stored[axis] : stored[axis]), base: 0 };
    about.axes.forEach((axis, a) => { if (flipped[a]) grid.base += (n[a] - 1) * stored[axis]; });
    const images = [];
    for (const image of about.images) images.push({ ...grid, name: image.name, kind: image.kind, step: image.step, units: image.kind === "HU" ? "HU" : "SUV", values: await decoded(image, about.shape), projections: [] });
    const ours = images.find(image => image.name === about.synthesized), full = images.find(image => image.name === about.reference);
    const columns = images.filter(image => image.kind === "SUV");
    const pets = [...columns];
    if (ours && full && ours !== full) {
      columns.push({ ...full, name: about.synthesized + " − " + about.reference, kind: "difference", projections: [], values: ours.values.map((value, i) => clamp(value - full.values[i], -32767, 32767)) });
    }
    columns.push(...images.filter(image => image.kind === "sd"));
    const ct = images.find(image => image.kind === "HU");
    if (ct) columns.push({ ...ct, name: "CT and PET", kind: "fusion" });
    const places = about.places.map(place => ({ ...place, at: about.axes.map((axis, a) => flipped[a] ? about.shape[axis] - 1 - place.at[axis] : place.at[axis]) }));
    const lesions = about.lesions ? { ...grid, values: await decoded({ voxels: about.lesions }, about.shape) } : null;
    return { about, n, mm, columns, pets, ct, places, lesions };
  }

  const index = (image, at) => image.base + at[0] * image.stride[0] + at[1] * image.stride[1] + at[2] * image.stride[2];
  const value = (image, at) => image.values[index(image, at)] * image.step;

  function between(image, point) {  // linear interpolation; the faces are continued
    let sum = 0;
    const low = point.map((p, a) => clamp(Math.floor(p), 0, image.n[a] - 1)), part = point.map((p, a) => clamp(p - low[a], 0, 1));
    for (let corner = 0; corner < 8; corner++) {
      let weight = 1;
      const at = low.map((l, a) => { const far = corner >> a & 1; weight *= far ? part[a] : 1 - part[a]; return Math.min(l + far, image.n[a] - 1); });
      if (weight) sum += weight * value(image, at);
    }
    return sum;
  }

  // ---- pictures: int16 in rows

  function slice(image, plane, level) {
    const width = image.n[plane.column], height = image.n[plane.row], values = new Int16Array(width * height);
    const start = image.base + level * image.stride[plane.across], right = image.stride[plane.column], down = image.stride[plane.row];
    for (let row = 0, i = 0; row < height; row++) for (let column = 0, from = start + row * down; column < width; column++, from += right) values[i++] = image.values[from];
    return { width, height, values };
  }

  function rays(image, angle) {  // the column of a projection that every (x, y) falls into
    const [nx, ny] = image.n, [dx, dy] = image.mm, pitch = Math.max(dx, dy), turn = Math.PI * angle / ANGLES;
    const width = Math.ceil(Math.hypot(nx * dx, ny * dy) / pitch) + 1, columns = new Int32Array(nx * ny);
    for (let y = 0; y < ny; y++) for (let x = 0; x < nx; x++) {
      const along = (x - (nx - 1) / 2) * dx * Math.cos(turn) + (y - (ny - 1) / 2) * dy * Math.sin(turn);
      columns[y * nx + x] = clamp(Math.round(along / pitch + (width - 1) / 2), 0, width - 1);
    }
    return { width, columns, pitch };
  }

  function projection(image, angle) {  // angle: 0 to 2 ANGLES - 1
    const half = angle % ANGLES, kept = image.projections;
    if (!kept[half]) {
      const [nx, ny, nz] = image.n, { width, columns } = rays(image, half), values = new Int16Array(width * nz).fill(NOTHING);
      const farthest = image.kind === "difference";
      for (let z = 0; z < nz; z++) for (let y = 0; y < ny; y++) {
        let from = image.base + z * image.stride[2] + y * image.stride[1];
        for (let x = 0; x < nx; x++, from += image.stride[0]) {
          const i = z * width + columns[y * nx + x], found = image.values[from];
          if (values[i] === NOTHING || (farthest ? Math.abs(found) > Math.abs(values[i]) : found > values[i])) values[i] = found;
        }
      }
      const empty = image.units === "HU" ? Math.round(-1000 / image.step) : 0;
      kept[half] = { width, height: nz, values: values.map(found => found === NOTHING ? empty : found) };
    }
    const found = kept[half];
    if (angle < ANGLES) return found;
    const values = new Int16Array(found.values.length);
    for (let row = 0; row < found.height; row++) for (let column = 0; column < found.width; column++) values[row * found.width + column] = found.values[(row + 1) * found.width - 1 - column];
    return { ...found, values };
  }

  function windowOf(kind) {
    if (kind === "difference") return [-state.difference, state.difference];
    return kind === "sd" ? [0, state.sd] : state.suv;
  }

  function level(stored, step, [low, high]) { return clamp(Math.round(255 * (stored * step - low) / (high - low)), 0, 255); }

  function painted(image, drawn, over, plane) {  // over: the PET on a CT, drawn alike
    const canvas = document.createElement("canvas");
    canvas.width = drawn.width; canvas.height = drawn.height;
    const context = canvas.getContext("2d"), pixels = context.createImageData(drawn.width, drawn.height), out = new Uint32Array(pixels.data.buffer);
    if (over) {
      const ct = plane ? CT_WINDOWS[state.ct] : told.bone_window, hot = palettes.hot, grey = palettes.ct, pet = current.pets[state.fused], share = state.share;
      for (let i = 0; i < out.length; i++) {
        const a = grey[level(drawn.values[i], image.step, ct)], b = hot[level(over.values[i], pet.step, state.suv)];
        let mixed = 0xff000000;
        for (let shift = 0; shift < 24; shift += 8) mixed |= ((a >> shift & 255) * (1 - share) + (b >> shift & 255) * share) << shift;
        out[i] = mixed;
      }
    } else {
      const colours = palettes[image.kind === "difference" ? "diverging" : image.kind === "sd" ? "hot" : "grey"], shown = windowOf(image.kind);
      for (let i = 0; i < out.length; i++) out[i] = colours[level(drawn.values[i], image.step, shown)];
    }
    context.putImageData(pixels, 0, 0);
    return canvas;
  }

  // ---- panels

  function build() {
    const place = find("panels");
    place.replaceChildren(); panels = []; outputs = [];
    const columns = current.columns.filter(image => !state.hidden.has(image.name));
    if (!columns.length) return;
    place.style.gridTemplateColumns = `repeat(${columns.length}, minmax(0, 1fr))`;
    for (const image of columns) {
      const output = make("output", { className: "value" });
      outputs.push([image, output]);
      place.append(make("div", { className: "head" }, image.name, output));
    }
    const room = clamp(Math.floor((place.clientWidth - GAP * (columns.length - 1)) / columns.length), 60, 420);
    for (const plane of [...PLANES, null]) for (const image of columns) {
      const canvas = make("canvas", { className: "panel" }), panel = { canvas, image, plane };
      const { width, pitch } = plane ? { width: current.n[plane.column], pitch: current.mm[plane.column] } : rays(current.columns[0], 0);
      const across = width * pitch, down = current.n[plane ? plane.row : 2] * current.mm[plane ? plane.row : 2];
      const upright = Math.max(current.n[0] * current.mm[0], current.n[1] * current.mm[1]);
      panel.scale = Math.min(room / (plane ? upright : across), HIGHEST_PANEL / down);  // CSS pixels per mm
      panel.size = [Math.max(1, Math.round(across * panel.scale)), Math.max(1, Math.round(down * panel.scale))];
      canvas.style.width = panel.size[0] + "px"; canvas.style.height = panel.size[1] + "px";
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${plane ? plane.name + " slice" : "Rotating maximum intensity projection"} of ${image.name}`);
      panels.push(panel); place.append(canvas); listen(panel);
    }
    later();
  }

  function view(panel, drawn) {  // which part of a picture is shown: left, top, width, height in its pixels
    if (!panel.plane) return [0, 0, drawn.width, drawn.height];
    const width = drawn.width / state.zoom, height = drawn.height / state.zoom;
    const left = clamp(state.at[panel.plane.column] + 0.5 - width / 2, 0, drawn.width - width);
    return [left, clamp(state.at[panel.plane.row] + 0.5 - height / 2, 0, drawn.height - height), width, height];
  }

  function draw(panel) {
    const { canvas, image, plane } = panel, dense = devicePixelRatio || 1, [width, height] = panel.size;
    const picture = of => plane ? slice(of, plane, state.at[plane.across]) : projection(of, state.angle);
    const drawn = picture(image), over = image.kind === "fusion" ? picture(current.pets[state.fused]) : null;
    canvas.width = Math.round(width * dense); canvas.height = Math.round(height * dense);
    const context = canvas.getContext("2d");
    context.scale(dense, dense);
    context.imageSmoothingEnabled = state.smooth; context.imageSmoothingQuality = "high";
    const shown = view(panel, drawn);
    context.drawImage(painted(image, drawn, over, plane), ...shown, 0, 0, width, height);
    const at = plane ? [state.at[plane.column] + 0.5, state.at[plane.row] + 0.5] : [seen(image), state.at[2] + 0.5];
    const x = (at[0] - shown[0]) / shown[2] * width, y = (at[1] - shown[1]) / shown[3] * height;
    context.strokeStyle = image.kind === "fusion" || image.kind === "sd" ? "#56b4e9" : image.kind === "difference" ? "#22303c" : "#d55e00";
    context.lineWidth = 1;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - 7, y], [x + 7, y, width, y], [x, 0, x, y - 7], [x, y + 7, x, height]]) { context.moveTo(x0, y0); context.lineTo(x1, y1); }
    context.stroke();
    if (plane && state.line && state.line.plane === plane) {
      context.strokeStyle = context.fillStyle = "#cc79a7"; context.lineWidth = 2; context.beginPath();
      state.line.ends.forEach((end, i) => {
        const place = [(end[plane.column] + 0.5 - shown[0]) / shown[2] * width, (end[plane.row] + 0.5 - shown[1]) / shown[3] * height];
        if (i) context.lineTo(...place); else { context.fillRect(place[0] - 3, place[1] - 3, 6, 6); context.moveTo(...place); }
      });
      context.stroke();
    }
    if (plane && state.outlines && current.lesions) outline(context, panel, shown);
    letters(context, panel);
  }

  function outline(context, { image, plane, size: [width, height] }, shown) {  // edges between voxels in a lesion and outside
    const { width: columns, height: rows, values } = slice(current.lesions, plane, state.at[plane.across]);
    const inside = (column, row) => column >= 0 && row >= 0 && column < columns && row < rows && values[row * columns + column] > 0;
    const x = column => (column - shown[0]) / shown[2] * width, y = row => (row - shown[1]) / shown[3] * height;
    context.strokeStyle = image.kind === "fusion" || image.kind === "sd" ? "#f0e442" : image.kind === "difference" ? "#009e73" : "#0072b2";
    context.lineWidth = 1.5; context.beginPath();
    for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
      if (!inside(column, row)) continue;
      for (const [across, down, ...edge] of [[-1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 1, 1], [0, -1, 0, 0, 1, 0], [0, 1, 0, 1, 1, 1]]) {
        if (inside(column + across, row + down)) continue;
        context.moveTo(x(column + edge[0]), y(row + edge[1])); context.lineTo(x(column + edge[2]), y(row + edge[3]));
      }
    }
    context.stroke();
  }

  function seen(image) {  // where the cross-hair stands in a projection
    const { width, columns } = rays(image, state.angle % ANGLES), column = columns[state.at[1] * image.n[0] + state.at[0]];
    return (state.angle < ANGLES ? column : width - 1 - column) + 0.5;
  }

  function letters(context, panel) {
    const [width, height] = panel.size;
    let sides;
    if (panel.plane) sides = ENDS[panel.plane.column];
    else if (state.angle % ANGLES === 0) sides = state.angle ? ["L", "R"] : ["R", "L"];
    else if (state.angle % ANGLES === ANGLES / 2) sides = state.angle < ANGLES ? ["A", "P"] : ["P", "A"];
    else {  // between: both letters of each side, the nearer one first
      const turn = Math.PI * state.angle / ANGLES, x = Math.cos(turn) > 0 ? ["R", "L"] : ["L", "R"], y = Math.sin(turn) > 0 ? ["A", "P"] : ["P", "A"];
      const first = Math.abs(Math.cos(turn)) >= Math.SQRT1_2;
      sides = [0, 1].map(i => first ? x[i] + y[i] : y[i] + x[i]);
    }
    const ends = ENDS[panel.plane ? panel.plane.row : 2];
    context.font = "700 11px Helvetica, Arial, sans-serif"; context.textBaseline = "middle";
    for (const [text, x, y, align] of [[sides[0], 3, height / 2, "left"], [sides[1], width - 3, height / 2, "right"], [ends[0], width / 2, 8, "center"], [ends[1], width / 2, height - 8, "center"]]) {
      context.textAlign = align; context.lineWidth = 3; context.strokeStyle = "rgba(255,255,255,.85)";
      context.strokeText(text, x, y); context.fillStyle = "#22303c"; context.fillText(text, x, y);
    }
  }

  function later() {  // one drawing per frame, however many events there are
    if (waiting || !current) return;
    waiting = true;
    setTimeout(() => { waiting = false; refresh(); }, 0);
  }

  function refresh() {
    panels.forEach(draw);
    for (const [image, output] of outputs) {
      const found = value(image, state.at), pet = image.kind === "fusion" ? `, ${value(current.pets[state.fused], state.at).toFixed(2)} SUV` : "";
      output.textContent = (image.units === "HU" ? found.toFixed(0) : found.toFixed(2)).replace("-", "−") + " " + image.units + pet;
    }
    const slices = PLANES.map(plane => `${plane.name.toLowerCase()} ${state.at[plane.across] + 1}/${current.n[plane.across]}`).join(", ");
    find("where").textContent = `Slices: ${slices}. Projection: ${Math.round(180 * state.angle / ANGLES)}°. Zoom: ${state.zoom}.`;
    root.dataset.at = state.at.join(" "); root.dataset.suv = state.suv.map(bound => bound.toFixed(2)).join(" ");
    for (const [name, shown] of [["suv-low", state.suv[0]], ["suv-high", state.suv[1]], ["difference-high", state.difference], ["sd-high", state.sd]]) {
      const field = find(name);
      if (document.activeElement !== field) field.value = +shown.toFixed(2);
    }
    find("angle").value = state.angle;
    profile();
  }

  // ---- the profile

  function profile() {
    const canvas = find("profile"), dense = devicePixelRatio || 1, width = canvas.clientWidth, height = 190;
    if (!width) return;
    canvas.width = width * dense; canvas.height = height * dense;
    const context = canvas.getContext("2d");
    context.scale(dense, dense);
    let ends, mark = null;
    if (state.along === "line") {
      if (!state.line) { context.fillStyle = "#5b6975"; context.font = "13px Helvetica, Arial, sans-serif"; context.fillText("Press “draw a line”, then drag over a slice.", 20, 30); return; }
      ends = state.line.ends;
    } else {
      const axis = Number(state.along);
      ends = [0, current.n[axis] - 1].map(end => state.at.map((place, a) => a === axis ? end : place));
      mark = state.at[axis] * current.mm[axis];
    }
    const long = Math.hypot(...ends[0].map((from, a) => (ends[1][a] - from) * current.mm[a])) || 1;
    const count = clamp(Math.ceil(2 * long / Math.min(...current.mm)), 2, 2000);
    const shown = current.pets.filter(image => !state.hidden.has(image.name));
    const curves = shown.map(image => Array.from({ length: count }, (_, i) => between(image, ends[0].map((from, a) => from + (ends[1][a] - from) * i / (count - 1)))));
    const top = Math.max(0.1, ...curves.flat()), bottom = Math.min(0, ...curves.flat());
    const left = 44, right = 12, head = 22, foot = 32;
    const x = mm => left + mm / long * (width - left - right), y = suv => height - foot - (suv - bottom) / (top - bottom) * (height - head - foot);
    context.font = "11px Helvetica, Arial, sans-serif"; context.fillStyle = "#5b6975"; context.strokeStyle = "#d9dfe4"; context.textBaseline = "middle";
    const ticks = (low, high, number) => { const raw = (high - low) / number, ten = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map(k => k * ten).find(s => s >= raw), found = []; for (let t = Math.ceil(low / step) * step; t <= high + 1e-9; t += step) found.push(+t.toPrecision(6)); return found; };
    context.textAlign = "right";
    for (const tick of ticks(bottom, top, 4)) { context.beginPath(); context.moveTo(left, y(tick)); context.lineTo(width - right, y(tick)); context.stroke(); context.fillText(String(tick).replace("-", "−"), left - 5, y(tick)); }
    context.textAlign = "center";
    for (const tick of ticks(0, long, 8)) context.fillText(tick, x(tick), height - foot + 11);
    const letters = state.along === "line" ? ["start (square)", "end"] : ENDS[Number(state.along)];
    context.fillText("mm", width / 2, height - 7); context.textAlign = "left"; context.fillText(letters[0], left, height - 7); context.textAlign = "right"; context.fillText(letters[1], width - right, height - 7);
    context.save(); context.translate(10, (height - foot + head) / 2); context.rotate(-Math.PI / 2); context.textAlign = "center"; context.fillText("SUV", 0, 0); context.restore();
    if (mark !== null) { context.strokeStyle = "#5b6975"; context.setLineDash([1, 3]); context.beginPath(); context.moveTo(x(mark), head); context.lineTo(x(mark), height - foot); context.stroke(); }
    let legend = left;
    shown.forEach((image, number) => {
      const place = image.name === current.about.reference ? 3 : current.pets.filter(one => one.name !== current.about.reference).indexOf(image), look = place === 3 || place < 3 ? place : 4;
      context.strokeStyle = context.fillStyle = LINES[look]; context.setLineDash(DASHES[look]); context.lineWidth = look === 3 ? 2.2 : 1.4;
      context.beginPath(); curves[number].forEach((suv, i) => context.lineTo(x(i / (count - 1) * long), y(suv))); context.stroke();
      context.beginPath(); context.moveTo(legend, 9); context.lineTo(legend + 24, 9); context.stroke();
      context.textAlign = "left"; context.fillText(image.name, legend + 29, 9); legend += 45 + context.measureText(image.name).width;
    });
  }

  // ---- mouse and keys

  const move = (axis, by) => { const before = state.at[axis]; state.at[axis] = clamp(before + by, 0, current.n[axis] - 1); later(); return state.at[axis] !== before; };
  const turn = by => { state.angle = (state.angle + by + 2 * ANGLES) % (2 * ANGLES); later(); };
  const zoom = by => { state.zoom = clamp(state.zoom * by, 1, 8); later(); };

  function widen(kind, down, across) {  // pixels of the mouse: up is darker, to the right moves the lower bound up
    if (kind === "difference") state.difference = clamp(state.difference * Math.exp(down / 150), 0.05, 100);
    else if (kind === "sd") state.sd = clamp(state.sd * Math.exp(down / 150), 0.02, 100);
    else {
      const high = clamp(state.suv[1] * Math.exp(down / 150), 0.1, 300);
      state.suv = [clamp(state.suv[0] + across * high / 400, 0, 0.9 * high), high];
    }
    later();
  }

  function voxel(panel, event) {  // what lies under the mouse, as a place along the axes; not rounded
    const box = panel.canvas.getBoundingClientRect(), drawn = panel.plane ? { width: current.n[panel.plane.column], height: current.n[panel.plane.row] } : projection(panel.image, state.angle);
    const shown = view(panel, drawn);
    return [shown[0] + (event.clientX - box.left) / box.width * shown[2] - 0.5, shown[1] + (event.clientY - box.top) / box.height * shown[3] - 0.5];
  }

  function point(panel, event) {
    const [column, row] = voxel(panel, event), { plane } = panel, at = [...state.at];
    at[plane.column] = clamp(column, 0, current.n[plane.column] - 1); at[plane.row] = clamp(row, 0, current.n[plane.row] - 1);
    return at;
  }

  function hottest(panel, event) {  // of a ray of the projection: the voxel that the projection shows
    const image = panel.image.kind === "fusion" ? current.pets[state.fused] : panel.image, { width, columns } = rays(image, state.angle % ANGLES);
    let [column, row] = voxel(panel, event).map(Math.round);
    row = clamp(row, 0, image.n[2] - 1);
    if (state.angle >= ANGLES) column = width - 1 - column;
    let best = -1, at = null;
    for (let y = 0; y < image.n[1]; y++) for (let x = 0; x < image.n[0]; x++) {
      if (columns[y * image.n[0] + x] !== column) continue;
      const found = value(image, [x, y, row]), size = image.kind === "difference" ? Math.abs(found) : found;
      if (size > best) { best = size; at = [x, y, row]; }
    }
    if (at) { state.at = at; later(); }
  }

  function listen(panel) {
    const { canvas, plane, image } = panel;
    let last = null, what = "", far = 0;
    canvas.addEventListener("contextmenu", event => event.preventDefault());
    canvas.addEventListener("wheel", event => {
      const by = Math.sign(event.deltaY);
      if (!by) return;
      if (event.ctrlKey) { zoom(by < 0 ? 2 : 0.5); event.preventDefault(); return; }
      if (plane) state.plane = PLANES.indexOf(plane);
      if (!plane) { turn(by); event.preventDefault(); } else if (move(plane.across, by)) event.preventDefault();  // at the last slice the page scrolls on
    }, { passive: false });
    canvas.addEventListener("pointerdown", event => {
      last = event; far = 0;
      what = event.button === 2 || event.shiftKey ? "window" : plane ? state.drawing ? "line" : "cross" : "turn";
      if (event.isTrusted) canvas.setPointerCapture(event.pointerId);
      find("panels").focus({ preventScroll: true });
      if (plane) state.plane = PLANES.indexOf(plane);
      if (what === "cross") { state.at = point(panel, event).map(Math.round); later(); }
      if (what === "line") { const start = point(panel, event); state.line = { plane, ends: [start, start] }; }
      event.preventDefault();
    });
    canvas.addEventListener("pointermove", event => {
      if (!last) return;
      const across = event.clientX - last.clientX, down = event.clientY - last.clientY;
      far += Math.abs(across) + Math.abs(down);
      if (what === "turn") { if (Math.abs(across) < 6) return; turn(Math.sign(across)); }
      if (what === "window") widen(image.kind, down, across);
      if (what === "cross") { state.at = point(panel, event).map(Math.round); later(); }
      if (what === "line") { state.line.ends[1] = point(panel, event); later(); }
      last = event;
    });
    canvas.addEventListener("pointerup", event => {
      if (what === "turn" && far < 4) hottest(panel, event);
      if (what === "line") { state.drawing = false; state.along = find("along").value = "line"; pressed(); later(); }
      last = null;
    });
    canvas.addEventListener("pointercancel", () => { last = null; });
  }

  find("panels").addEventListener("keydown", event => {
    if (!current || event.ctrlKey || event.metaKey || event.altKey) return;
    const plane = PLANES[state.plane];
    const keys = {
      ArrowLeft: () => move(plane.column, -1), ArrowRight: () => move(plane.column, 1), ArrowUp: () => move(plane.row, -1), ArrowDown: () => move(plane.row, 1),
      PageUp: () => move(plane.across, -1), PageDown: () => move(plane.across, 1), "+": () => zoom(2), "-": () => zoom(0.5),
      "[": () => widen("SUV", -15, 0), "]": () => widen("SUV", 15, 0), ",": () => turn(-1), ".": () => turn(1),
      1: () => { state.plane = 0; }, 2: () => { state.plane = 1; }, 3: () => { state.plane = 2; }, r: reset,
    };
    if (keys[event.key]) { keys[event.key](); event.preventDefault(); }
  });

  // ---- controls

  function pressed() { find("line").setAttribute("aria-pressed", state.drawing); }

  function reset() {
    Object.assign(state, { suv: [...told.suv_window], difference: told.difference_window, sd: told.difference_window / 2, zoom: 1, angle: 0 });
    later();
  }

  function number(name, set) {
    find(name).addEventListener("change", event => { const typed = Number(event.target.value); if (Number.isFinite(typed)) set(typed); later(); event.target.blur(); });
  }
  number("suv-low", typed => { state.suv[0] = clamp(typed, -100, state.suv[1] - 0.05); });
  number("suv-high", typed => { state.suv[1] = clamp(typed, state.suv[0] + 0.05, 300); });
  number("difference-high", typed => { state.difference = clamp(typed, 0.05, 100); });
  number("sd-high", typed => { state.sd = clamp(typed, 0.02, 100); });
  find("zoom-in").addEventListener("click", () => zoom(2));
  find("zoom-out").addEventListener("click", () => zoom(0.5));
  find("reset").addEventListener("click", reset);
  find("outlines").addEventListener("change", event => { state.outlines = event.target.checked; later(); });
  find("smooth").addEventListener("change", event => { state.smooth = event.target.checked; later(); });
  find("share").addEventListener("input", event => { state.share = event.target.value / 100; later(); });
  find("fused").addEventListener("change", event => { state.fused = Number(event.target.value); later(); });
  find("ct").addEventListener("change", event => { state.ct = event.target.value; later(); });
  find("angle").addEventListener("input", event => { state.angle = Number(event.target.value); later(); });
  find("along").addEventListener("change", event => { state.along = event.target.value; later(); });
  find("line").addEventListener("click", () => { state.drawing = !state.drawing; pressed(); });
  find("turn").addEventListener("click", event => {
    if (timer) { clearInterval(timer); timer = null; } else timer = setInterval(() => turn(1), 120);
    event.target.setAttribute("aria-pressed", timer !== null);
  });
  find("case").addEventListener("change", event => load(Number(event.target.value)));
  Object.keys(CT_WINDOWS).forEach(name => find("ct").append(make("option", { value: name, textContent: name })));
  told.cases.forEach((about, i) => find("case").append(make("option", { value: i, textContent: `${about.name}, ${about.why}` })));

  async function load(number) {
    find("state").textContent = "Opening the images …";
    current = await opened(told.cases[number]);
    state.line = null; state.fused = Math.max(0, current.pets.findIndex(image => image.name === current.about.synthesized));
    const first = current.places.find(place => place.kind === "lesion") || current.places[0];
    state.at = first ? [...first.at] : current.n.map(length => length >> 1);
    for (const kind of ["lesion", "organ"]) {
      const buttons = current.places.filter(place => place.kind === kind).map(place => {
        const button = make("button", { type: "button", textContent: place.name });
        button.addEventListener("click", () => { state.at = [...place.at]; later(); });
        return button;
      });
      const line = find(kind + "s");
      line.hidden = !buttons.length;
      line.querySelector("span").replaceChildren(...buttons);
    }
    find("columns").replaceChildren(...current.columns.map(image => {
      const box = make("input", { type: "checkbox", checked: !state.hidden.has(image.name) });
      box.addEventListener("change", () => { if (box.checked) state.hidden.delete(image.name); else state.hidden.add(image.name); build(); });
      return make("label", {}, box, " " + image.name);
    }));
    find("fused").replaceChildren(...current.pets.map((image, i) => make("option", { value: i, textContent: image.name, selected: i === state.fused })));
    find("outlined").hidden = !current.lesions;
    find("fusion").hidden = !current.ct;
    find("deviation").hidden = !current.columns.some(image => image.kind === "sd");
    const [x, y, z] = current.mm;
    find("state").textContent = `Voxels ${[z, y, x].map(mm => +mm.toFixed(2)).join(" × ")} mm (z, y, x); values in steps of ${current.pets[0].step} SUV.`;
    build(); refresh();
    root.dataset.state = "ready";
  }

  if (typeof DecompressionStream === "undefined") { failed("this browser is too old to unpack the images (it has no DecompressionStream)"); return; }
  let wide = 0;
  addEventListener("resize", () => { if (current && root.clientWidth !== wide) { wide = root.clientWidth; build(); } });
  wide = root.clientWidth;
  load(0).catch(error => failed(String(error)));
})();
