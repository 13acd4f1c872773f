"use strict";
// The timeline of samples: a slider over the frames, and a button that plays them.
// A live page replaces the elements, so they are looked up each time.
const byId = (id) => document.getElementById(id);
let frames = [];
let timer = null;

function loadFrames() {
  frames = byId("frames") ? JSON.parse(byId("frames").textContent) : [];
  show();
}

function show() {
  if (frames.length === 0) return;
  const [caption, image] = frames[Number(byId("slider").value)];
  byId("frame").src = image;
  byId("caption").textContent = caption;
  byId("play").textContent = timer === null ? "Play" : "Stop";
}

function goTo(number) {
  byId("slider").value = number;
  show();
}

function isAtEnd() {
  return frames.length === 0 || Number(byId("slider").value) >= frames.length - 1;
}

function stop() {
  clearInterval(timer);
  timer = null;
  show();
}

function play() {
  timer = setInterval(() => (isAtEnd() ? stop() : goTo(Number(byId("slider").value) + 1)), 350);
  goTo(isAtEnd() ? 0 : byId("slider").value);
}

document.addEventListener("input", (event) => { if (event.target.id === "slider") stop(); });
document.addEventListener("click", (event) => {
  if (event.target.id === "play") (timer === null ? play : stop)();
});
loadFrames(); // The browser may have restored the slider's place.
