"use strict";
// A generator in the browser. A picture is made from a latent z, which is the place on a walk
// between two latents, moved toward a typical latent, plus a multiple of each direction.
const byId = (id) => document.getElementById(id);
const all = (selector) => [...document.querySelectorAll(selector)];
const demo = JSON.parse(byId("demo").textContent);
const SECONDS_PER_WALK = 3;
const DOWNLOAD_PIXELS = 512;

let ort = null; // the runtime, once it is loaded
let session = null;
let lastRun = Promise.resolve(); // a session computes one batch at a time
let start = randomLatent(); // of the walk
let end = randomLatent();
let gallery = [];
let isStale = false; // the picture does not show the current latent
let isDrawing = false;
let player = null; // the walk's animation, while it plays

function normal() {
  return Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
}

function randomLatent() {
  return Float32Array.from({ length: demo.latent_dim }, normal);
}

// Spherical linear interpolation: a straight line would pass too close to zero.
function slerp(from, to, fraction) {
  const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
  const cosine = dot(from, to) / Math.sqrt(dot(from, from) * dot(to, to));
  const angle = Math.acos(Math.min(Math.max(cosine, -1 + 1e-6), 1 - 1e-6));
  const [before, after] = [1 - fraction, fraction].map((x) => Math.sin(x * angle));
  return from.map((value, i) => (before * value + after * to[i]) / Math.sin(angle));
}

// Moves a latent toward the most typical one.
function truncated(latent) {
  return slerp(demo.centers[classNumber()], latent, Number(byId("truncation").value));
}

function classNumber() {
  return byId("class") ? Number(byId("class").value) : 0;
}

function moved(latent) {
  const directions = demo.directions[Math.min(classNumber(), demo.directions.length - 1)];
  return all(".direction").reduce((z, slider, number) => {
    const step = Number(slider.value);
    return step ? z.map((value, i) => value + step * directions[number][i]) : z;
  }, latent);
}

function currentLatent() {
  return moved(truncated(slerp(start, end, Number(byId("way").value))));
}

// Returns the ImageData of one latent.
function generate(latent) {
  const run = async () => {
    const values = [...demo.class_values.slice(classNumber(), classNumber() + 1), ...latent];
    const inputs = {
      latents: new ort.Tensor("float32", Float32Array.from(values), [1, values.length]),
    };
    if (demo.takes_labels) inputs.labels = new ort.Tensor("int64", [BigInt(classNumber())], [1]);
    return toImage((await session.run(inputs)).images.data);
  };
  const result = lastRun.then(run);
  lastRun = result.catch(() => null);
  return result;
}

// Values [C, H, W] in [-1, 1] to pixels; the array rounds and clamps.
function toImage(values) {
  const area = demo.width * demo.height;
  const pixels = new Uint8ClampedArray(4 * area);
  for (let place = 0; place < area; place += 1) {
    for (let color = 0; color < 3; color += 1) {
      const value = values[Math.min(color, demo.channels - 1) * area + place];
      pixels[4 * place + color] = (value + 1) * 127.5;
    }
    pixels[4 * place + 3] = 255;
  }
  return new ImageData(pixels, demo.width, demo.height);
}

async function draw(canvas, latent) {
  const context = canvas.getContext("2d", { willReadFrequently: true }); // pixels stay on the CPU
  context.putImageData(await generate(latent), 0, 0);
}

// Sliders move faster than a slow phone computes: only the newest latent is drawn.
async function drawPicture() {
  isStale = true;
  if (isDrawing) return;
  isDrawing = true;
  while (isStale) {
    isStale = false;
    await draw(byId("picture"), currentLatent());
  }
  isDrawing = false;
}

async function drawEnds() {
  await draw(byId("start").firstElementChild, truncated(start));
  await draw(byId("end").firstElementChild, truncated(end));
}

async function drawGallery() {
  const latents = gallery;
  for (const [number, canvas] of all("#gallery canvas").entries()) {
    if (latents !== gallery) return; // replaced in the meantime
    await draw(canvas, truncated(latents[number]));
  }
}

async function drawAll() {
  gallery = [...gallery]; // ends an older drawing
  await drawPicture();
  await drawEnds();
  await drawGallery();
}

function newGallery() {
  gallery = all("#gallery canvas").map(randomLatent);
}

function startFrom(latent) {
  stop();
  start = latent;
  byId("way").value = 0;
  return Promise.all([drawPicture(), drawEnds()]);
}

function replaceEnd() {
  stop();
  end = randomLatent();
  return Promise.all([drawPicture(), drawEnds()]);
}

function resetDirections() {
  for (const slider of all(".direction")) slider.value = 0;
  showValues();
  return drawPicture();
}

function showValues() {
  for (const slider of all(".direction")) {
    slider.nextElementSibling.textContent = Number(slider.value).toFixed(1).replace(/\.0$/, "");
  }
  byId("truncation-value").textContent = Number(byId("truncation").value).toFixed(2);
}

// Walks without end: whenever it arrives, it goes on to a new random latent.
async function play() {
  const own = {};
  player = own;
  byId("play").textContent = "Stop";
  let before = performance.now();
  let way = Number(byId("way").value);
  while (player === own) {
    const now = await new Promise(requestAnimationFrame);
    way += (now - before) / 1000 / SECONDS_PER_WALK;
    before = now;
    if (way >= 1) {
      [start, end, way] = [end, randomLatent(), 0];
      await drawEnds();
      before = performance.now();
    }
    if (player !== own) return;
    byId("way").value = way;
    await drawPicture();
  }
}

function stop() {
  player = null;
  byId("play").textContent = "Play";
}

function download() {
  const canvas = document.createElement("canvas");
  const scale = Math.max(1, Math.floor(DOWNLOAD_PIXELS / demo.width));
  canvas.width = scale * demo.width;
  canvas.height = scale * demo.height;
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = !demo.is_crisp;
  context.imageSmoothingQuality = "high";
  context.drawImage(byId("picture"), 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${demo.title}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

// Fetches a file; the browser refuses one whose hash is not the expected one.
async function fetchFile({ url, integrity }) {
  const response = await fetch(url, { integrity, referrerPolicy: "no-referrer" }).catch(() => {
    const isOwn = new URL(url, location).origin === location.origin;
    throw new Error(
      `${url} did not load, or is not the file that this page was made for.` +
        (isOwn ? "" : " Pages written with distgan demo --offline bring it along."),
    );
  });
  if (!response.ok) throw new Error(`${url}: ${response.status} ${response.statusText}`);
  return response;
}

async function load() {
  const [script, wasm, model] = await Promise.all(
    [demo.runtime.script, demo.runtime.wasm, demo.model].map(fetchFile),
  );
  const code = new Blob([await script.text()], { type: "text/javascript" });
  ort = await import(URL.createObjectURL(code));
  ort.env.wasm.numThreads = 1; // more need headers that static hosts do not send
  ort.env.wasm.wasmBinary = await wasm.arrayBuffer();
  session = await ort.InferenceSession.create(new Uint8Array(await model.arrayBuffer()));
}

function listen() {
  const onClick = (id, act) => byId(id).addEventListener("click", () => act().catch(showError));
  onClick("random", () => startFrom(randomLatent()));
  onClick("start", () => startFrom(randomLatent()));
  onClick("end", replaceEnd);
  onClick("reset", resetDirections);
  onClick("others", async () => { newGallery(); await drawGallery(); });
  onClick("play", async () => { if (player) stop(); else await play(); });
  byId("download").addEventListener("click", download);
  all("#gallery button").forEach((button, number) => {
    button.addEventListener("click", () => startFrom(gallery[number]).catch(showError));
  });
  document.addEventListener("input", (event) => {
    showValues();
    if (event.target.id === "way") stop();
    const changesAll = ["class", "truncation"].includes(event.target.id);
    (changesAll ? drawAll() : drawPicture()).catch(showError);
  });
}

function showError(error) {
  byId("status").className = "bad";
  byId("status").textContent = location.protocol === "file:"
    ? "Browsers load a network only from a web server. In this folder type: " +
      "python -m http.server   Then open http://localhost:8000"
    : `The network cannot run here: ${error.message}`;
}

async function main() {
  document.body.classList.toggle("crisp", demo.is_crisp);
  showValues(); // the browser may have restored the sliders
  await load();
  listen();
  newGallery();
  byId("stage").inert = false;
  byId("status").textContent = "";
  await drawAll();
}

main().catch(showError);
