"use strict";
const frames = JSON.parse(document.getElementById("frames").textContent);
const slider = document.getElementById("slider"), play = document.getElementById("play");
let timer = null;
function show() {
  const [caption, picture] = frames[Number(slider.value)];
  document.getElementById("frame").src = picture;
  document.getElementById("caption").textContent = caption;
}
function stop() {
  clearInterval(timer);
  timer = null;
  play.textContent = "Play";
}
function next() {
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
  timer = setInterval(next, 350);
});
show(); // a browser may have kept the slider's place
