"""`distgan demo`: a page that runs a generator in the browser.

run -> generator.onnx + index.html [+ the files of ONNX Runtime Web]
"""

import hashlib
import shlex
from pathlib import Path
from typing import Any

from distgan.commands import web_runtime
from distgan.commands.export import read_facts, write_onnx
from distgan.commands.output import writing_to
from distgan.errors import UserError
from distgan.networks.base import ConditionalSpec
from distgan.networks.directions import latent_directions
from distgan.networks.generator import Generator
from distgan.networks.generator_file import load_generator
from distgan.networks.latents import sample_latents
from distgan.networks.mixture import MixtureSpec, choose_class, split_class
from distgan.reporting.rendering import render, write_page

NUM_DIRECTIONS, NUM_IN_GALLERY = 8, 12


def demo(
    source: Path, out: Path, *, title: str | None, offline: bool, hosts: tuple[str, ...] = ()
) -> list[str]:
    """Write the page and the generator to a folder; return a sentence per step.

    With `offline`, copy ONNX Runtime Web into the folder; else browsers get it from a CDN. The page
    may also load files from `hosts`. Raises UserError.
    """
    generator = load_generator(source)
    channels = generator.spec.channels
    if channels not in (1, 3):
        raise UserError(f"a page shows 1 or 3 channels, and the images of {source} have {channels}")
    with writing_to(out, option="--out"):
        out.mkdir(parents=True, exist_ok=True)
        sentences = [write_onnx(generator, out, read_facts(source))]
        if offline:
            web_runtime.copy_runtime(out)
        page = demo_page(
            generator,
            out,
            title=title or source.resolve().name,
            offline=offline,
            hosts=hosts,
        )
        write_page(out / "index.html", page)
    return [
        *sentences,
        f"wrote {out / 'index.html'}; put the folder on any web server, or type: "
        f"python -m http.server --directory {shlex.quote(str(out))}, and open http://localhost:8000",
    ]


def demo_page(
    generator: Generator, out: Path, *, title: str, offline: bool, hosts: tuple[str, ...] = ()
) -> str:
    """Return the page for the generator.onnx in a folder."""
    spec, model = generator.spec, out / "generator.onnx"
    channels, height, width = generator.image_shape
    runtime = {"script": web_runtime.SCRIPT, "wasm": web_runtime.WASM}
    num_bytes = model.stat().st_size + sum(file.num_bytes for file in runtime.values())
    directions = latent_directions(generator.network, NUM_DIRECTIONS)
    content = model.read_bytes()
    values = {
        "title": title,
        "height": height,
        "width": width,
        "channels": channels,
        "latent_dim": directions.shape[-1],
        "takes_labels": isinstance(spec, ConditionalSpec),
        "is_crisp": width < 64,
        "class_values": class_values(generator),
        "directions": rounded(directions.tolist()),
        "centers": rounded(
            [generator.center(name).tolist() for name in generator.classes or (None,)]
        ),
        # The hash in the URL keeps browsers from using an older file that they have cached.
        "model": {
            "url": f"{model.name}?{hashlib.sha256(content).hexdigest()[:8]}",
            "integrity": web_runtime.integrity(content),
        },
        "runtime": {
            kind: {
                "url": ("" if offline else web_runtime.CDN) + file.name,
                "integrity": file.integrity,
            }
            for kind, file in runtime.items()
        },
    }
    return render(
        "demo.html.j2",
        demo=values,
        title=title,
        height=height,
        width=width,
        classes=generator.classes,
        num_directions=directions.shape[1],
        num_in_gallery=NUM_IN_GALLERY,
        hosts=hosts if offline else (web_runtime.CDN_HOST, *hosts),
        runtime_version=web_runtime.VERSION,
        download_mb=round(num_bytes / 1e6),
    )


def class_values(generator: Generator) -> list[float]:
    """Return what stands for each class in a latent; nothing if it does not hold the class."""
    spec = generator.spec
    if not isinstance(spec, MixtureSpec):
        return []
    latents = sample_latents(1, spec, seed=0)
    return [split_class(choose_class(latents, spec, name), spec)[0].item() for name in spec.classes]


def rounded(values: Any) -> Any:
    """Return nested lists of numbers with four decimals, which keeps the page small."""
    return [rounded(value) for value in values] if isinstance(values, list) else round(values, 4)
