"use strict";
/* 256 shades per scale, in equal steps of perceived lightness (OKLab's L), so that the order survives every kind of
   colour vision and printing in grey. The end of a scale that means "little" is near the page's ground. The sequential
   one goes over yellow, green and blue; the diverging one has orange below 0 and blue above. Text on a shade is black or
   white, whichever has more contrast: never less than 4.5. */

const SHADES = 256;
const SEQUENTIAL = {
  light: ["#fafae6", "#edf8b1", "#c7e9b4", "#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494", "#081d58"],
  dark: ["#1a1e33", "#253494", "#225ea8", "#1d91c0", "#41b6c4", "#7fcdbb", "#c7e9b4", "#edf8b1", "#ffffd9"],
};
const DIVERGING = {
  light: { below: ["#f7f7f4", "#fdd5a0", "#f5a04a", "#d0700f", "#8f4404"], above: ["#f7f7f4", "#c6dff2", "#7fb8de", "#2f7fbc", "#0b3d7a"] },
  dark: { below: ["#20242b", "#5d3410", "#a9600f", "#ef9a3c", "#ffd9a3"], above: ["#20242b", "#153f6b", "#1f72b4", "#62aae6", "#c4e2fb"] },
};

function linearOf(hex) {
  return [1, 3, 5].map((at) => {
    const value = parseInt(hex.slice(at, at + 2), 16) / 255;
    return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  });
}

function hexOf(linear) {
  return "#" + linear.map((value) => {
    const bounded = Math.min(1, Math.max(0, value));
    const coded = bounded <= 0.0031308 ? 12.92 * bounded : 1.055 * bounded ** (1 / 2.4) - 0.055;
    return Math.round(255 * coded).toString(16).padStart(2, "0");
  }).join("");
}

function labOf(hex) {
  const [r, g, b] = linearOf(hex);
  const l = Math.cbrt(0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b);
  const m = Math.cbrt(0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b);
  const s = Math.cbrt(0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b);
  return [
    0.2104542553 * l + 0.793617785 * m - 0.0040720468 * s,
    1.9779984951 * l - 2.428592205 * m + 0.4505937099 * s,
    0.0259040371 * l + 0.7827717662 * m - 0.808675766 * s,
  ];
}

function colourOfLab([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return hexOf([
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ]);
}

/* `count` colours along the anchors, whose lightness only rises or only falls, at equal steps of it. */
function ramp(anchors, count) {
  const labs = anchors.map(labOf);
  const first = labs[0][0];
  const last = labs[labs.length - 1][0];
  const falling = last < first;
  return Array.from({ length: count }, (_, index) => {
    const lightness = first + ((last - first) * index) / (count - 1);
    let next = 1;
    while (next < labs.length - 1 && (falling ? labs[next][0] > lightness : labs[next][0] < lightness)) next += 1;
    const [from, to] = [labs[next - 1], labs[next]];
    const part = (lightness - from[0]) / (to[0] - from[0]);
    return colourOfLab([lightness, from[1] + part * (to[1] - from[1]), from[2] + part * (to[2] - from[2])]);
  });
}

function luminance(hex) {
  const [r, g, b] = linearOf(hex);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/* Black and white have the same contrast on a luminance of 0.179. */
function inkOn(hex) {
  return luminance(hex) > 0.179 ? "#000000" : "#ffffff";
}

function shades(diverging, dark) {
  const theme = dark ? "dark" : "light";
  const half = SHADES / 2;
  const grounds = diverging
    ? [...ramp(DIVERGING[theme].below, half).reverse(), ...ramp(DIVERGING[theme].above, half)]
    : ramp(SEQUENTIAL[theme], SHADES);
  return grounds.map((ground) => ({ ground, ink: inkOn(ground) }));
}

/* From a value to its shade; 0 is always on the scale, in the middle of a diverging one. Where all values are the same,
   they are in the middle too: a full colour would look like much of something. */
function scaleOf(values, diverging, clipped) {
  const known = Float64Array.from(values.filter((value) => Number.isFinite(value))).sort();
  const at = (share) => (known.length ? known[Math.min(known.length - 1, Math.floor(share * known.length))] : 0);
  let low = Math.min(0, at(1 - clipped));
  let high = Math.max(0, at(clipped));
  if (diverging) {
    high = Math.max(high, -low);
    low = -high;
  }
  else if (known.length && known[0] === known[known.length - 1]) [low, high] = [2 * low, 2 * high];
  if (!(high > low)) [low, high] = diverging ? [-1, 1] : [0, 1];
  const shade = (value) => Math.min(SHADES - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * SHADES)));
  return { low, high, diverging, shade, beyond: known.length > 0 && (known[0] < low || known[known.length - 1] > high) };
}
