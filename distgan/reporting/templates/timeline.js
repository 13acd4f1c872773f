"use strict";
// The timeline of samples: a slider over the frames, and a button that plays them.
const frames = JSON.parse(document.getElementById("frames").textContent);
const slider = document.getElementById("slider");
const play = document.getElementById("play");
let timer = null;

function show() {
  const [caption, image] = frames[Number(slider.value)];
  document.getElementById("frame").src = image;
  document.getElementById("caption").textContent = caption;
}

function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}

function advance() {
  if (Number(slider.value) + 1 >= frames.length) return stop();
  slider.value = Number(slider.value) + 1;
  show();
}

slider.addEventListener("input", () => { stop(); show(); });
play.addEventListener("click", () => {
  if (timer !== null) return stop();
  if (Number(slider.value) + 1 >= frames.length) slider.value = 0;
  show();
  play.textContent = "Stop";
  timer = setInterval(advance, 350);
});
show(); // The browser may have restored the slider's place.
