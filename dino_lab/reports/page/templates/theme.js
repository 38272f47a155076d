"use strict";
// Light or dark: as the system has it, until someone chooses.
(() => {
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const choices = ["auto", "light", "dark"];
  let chosen = "auto";
  try { chosen = localStorage.getItem("dino-lab-theme") || "auto"; } catch { /* a file may have no storage */ }
  const show = () => {
    const theme = chosen === "auto" ? (dark.matches ? "dark" : "light") : chosen;
    document.documentElement.dataset.theme = theme;
    button.querySelector("span").textContent = chosen;
  };
  button.addEventListener("click", () => {
    chosen = choices[(choices.indexOf(chosen) + 1) % choices.length];
    try { localStorage.setItem("dino-lab-theme", chosen); } catch { /* then for this visit alone */ }
    show();
  });
  dark.addEventListener("change", show);
  show();
})();
