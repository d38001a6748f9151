// Draws the curves of the report with uPlot, from the JSON in the page.
(() => {
  "use strict";

  const HEIGHT = 240;
  const COLOURS = ["--first", "--second", "--third", "--fourth", "--fifth", "--sixth", "--seventh"];
  const { charts, resumed } = JSON.parse(document.getElementById("curves").textContent);
  const host = document.getElementById("charts");
  if (!host) return;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  const figure = (value) => {
    if (value == null) return "-";
    const size = Math.abs(value);
    if (value !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
    return value.toLocaleString("en", { maximumSignificantDigits: 5 });
  };

  // Dashed lines at the steps from which the run went on.
  const markResumed = (plot) => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colour("--dim");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    for (const step of resumed) {
      const x = Math.round(plot.valToPos(step, "x", true));
      if (x < bbox.left || x > bbox.left + bbox.width) continue;
      ctx.beginPath();
      ctx.moveTo(x, bbox.top);
      ctx.lineTo(x, bbox.top + bbox.height);
      ctx.stroke();
    }
    ctx.restore();
  };

  const axis = (more) => ({
    stroke: colour("--dim"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1 },
    ...more,
  });

  const draw = (chart, place, width, isLogarithmic) =>
    new uPlot(
      {
        width,
        height: HEIGHT,
        cursor: { sync: { key: "steps", scales: ["x", null] }, drag: { x: true, y: false } },
        scales: { x: { time: false }, y: { distr: isLogarithmic ? 3 : 1 } },
        axes: [axis({}), axis({ size: 70, values: (plot, ticks) => ticks.map((tick) => (tick == null ? "" : figure(tick))) })],
        series: [
          { label: "step", value: (plot, value) => figure(value) },
          ...chart.names.map((name, index) => ({
            label: name,
            stroke: colour(COLOURS[index % COLOURS.length]),
            width: 1.5,
            spanGaps: true,
            points: { show: chart.data[index + 1].filter((value) => value != null).length < 60 },
            value: (plot, value) => figure(value),
          })),
        ],
        hooks: { draw: [markResumed] },
      },
      chart.data,
      place,
    );

  // What is shown: a chart, where it stands, and whether its values are on a logarithmic axis.
  const shown = charts.map((chart) => {
    const frame = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const place = document.createElement("div");
    caption.append(chart.title);
    frame.append(caption, place);
    host.append(frame);
    const entry = { chart, place, plot: null, isLogarithmic: false };
    if (chart.data.slice(1).every((values) => values.every((value) => value == null || value > 0))) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.addEventListener("change", () => {
        entry.isLogarithmic = box.checked;
        redraw(entry);
      });
      label.append(box, " log");
      caption.append(label);
    }
    return entry;
  });

  const redraw = (entry) => {
    entry.plot?.destroy();
    entry.plot = draw(entry.chart, entry.place, entry.place.clientWidth, entry.isLogarithmic);
  };

  shown.forEach(redraw);
  new ResizeObserver(() => {
    for (const { plot, place } of shown) plot.setSize({ width: place.clientWidth, height: HEIGHT });
  }).observe(host);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => shown.forEach(redraw));
})();
