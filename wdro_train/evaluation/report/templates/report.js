"use strict";
const touch = window.matchMedia("(pointer: coarse)").matches;
const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: touch ? false : "hover",
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], // and nothing that uploads
  plotlyServerURL: "",
};
for (const data of document.querySelectorAll("script[type='application/json']")) {
  const place = data.parentElement;
  const plot = JSON.parse(data.textContent);
  place.style.height = `${Math.min(560, Math.max(380, 300 + 28 * plot.data.filter(t => t.showlegend !== false).length))}px`;
  if (touch) plot.layout.dragmode = false; // a finger scrolls the page
  Plotly.newPlot(place, plot.data, plot.layout, config);
}
window.addEventListener("beforeprint", () => {
  for (const place of document.querySelectorAll(".plot")) Plotly.Plots.resize(place);
});
