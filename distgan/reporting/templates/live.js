// Fetches the page again, and replaces the sections that have changed.
const POLL_MS = 2000;
const sources = {}; // The HTML of each section as it was received.
const note = byId("live").textContent;
let version = null;

function update(page) {
  for (const section of page.querySelectorAll("main > section")) {
    if (sources[section.id] === section.innerHTML) continue;
    sources[section.id] = section.innerHTML;
    const [wasAtEnd, place] = [isAtEnd(), byId("slider")?.value];
    byId(section.id).innerHTML = section.innerHTML;
    if (section.id !== "samples") continue;
    if (!wasAtEnd && place !== undefined) byId("slider").value = place;
    loadFrames();
  }
}

async function poll() {
  try {
    const response = await fetch("/", { cache: "no-cache" });
    const current = response.headers.get("ETag");
    if (response.ok && current !== version) {
      update(new DOMParser().parseFromString(await response.text(), "text/html"));
      version = current;
    }
    byId("live").textContent = note;
  } catch {
    byId("live").textContent = "not updated: distgan report --live does not answer";
  }
  setTimeout(poll, POLL_MS);
}

poll();
