// What the page does of itself: details open for print, tables sort, two projections blink.
"use strict";
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(details => { details.open = true; }));
document.querySelectorAll("table.sortable").forEach(table => {
  const head = [...table.rows].filter(row => row.querySelector("th")).pop();
  [...head.cells].forEach((cell, column) => {
    cell.classList.add("sort");
    let up = false;
    cell.addEventListener("click", () => {
      up = !up;
      const key = row => { const text = row.cells[column].textContent.replace("−", "-"); const number = parseFloat(text); return isNaN(number) ? text : number; };
      const rows = [...table.rows].filter(row => !row.querySelector("th"));
      rows.sort((a, b) => { const x = key(a), y = key(b); return (typeof x === typeof y ? (x > y) - (x < y) : typeof x === "number" ? -1 : 1) * (up ? 1 : -1); });
      rows.forEach(row => row.parentNode.append(row));
    });
  });
});
document.querySelectorAll(".case").forEach(section => {
  const images = [...section.querySelectorAll("[data-blink]")], box = section.querySelector(".blink");
  if (images.length < 2) return;
  const view = new Image(), buttons = [];
  let timer = null;
  const show = index => { view.src = images[index].src; view.alt = images[index].alt; buttons.forEach((b, i) => b.setAttribute("aria-pressed", i === index)); };
  images.forEach((image, index) => {
    const button = document.createElement("button");
    button.textContent = image.dataset.blink;
    button.addEventListener("click", () => { clearInterval(timer); timer = null; show(index); });
    buttons.push(button); box.append(button, " ");
  });
  const blink = document.createElement("button");
  blink.textContent = "blink last two";
  blink.addEventListener("click", () => { clearInterval(timer); let index = images.length - 2; timer = setInterval(() => { show(index); index = index === images.length - 1 ? images.length - 2 : images.length - 1; }, 600); });
  box.append(blink, view); box.hidden = false; show(images.length - 2);
});
