"""`distgan export --push USER/NAME`: a generator, its card and its demo on the Hugging Face Hub.

run -> generator, card, samples -> model USER/NAME
    -> demo page                -> Space USER/NAME
"""

from pathlib import Path

import yaml

from distgan.commands.demo import demo
from distgan.commands.export import CARD_FILES, FILES, export, formats_in
from distgan.commands.output import writing_to
from distgan.networks.generator_file import GENERATOR_FILES
from distgan.runtime import hub
from shards.files import write_atomic

# The Hub may redirect a request for a large file of a Space to its file servers.
FILE_HOSTS = ("https://*.huggingface.co", "https://*.hf.co")
SPACE_FILES = ["README.md", "index.html", "generator.onnx"]


def push(source: Path, out: Path, name: str, *, license: str, private: bool) -> list[str]:
    """Write generator, card and demo to a folder and upload them; return a sentence per step.

    Uploads nothing else that the folder holds. Raises UserError, before the upload if files cannot
    be written, or if what is to be private would be public.
    """
    hub.check_repo_name(name)
    page = out / "demo"
    format = "safetensors"
    sentences = export(source, out, format=format, license=license, hub_name=name)
    title = name.partition("/")[2]
    sentences += demo(source, page, title=title, offline=False, hosts=FILE_HOSTS)
    with writing_to(page, option="--out"):
        write_atomic(page / "README.md", space_card(name, license=license))
    model = hub.create_repo(name, private=private)
    space = hub.create_repo(name, private=private, is_space=True)
    files = {*GENERATOR_FILES, *CARD_FILES, *(FILES[each] for each in formats_in(out, format))}
    hub.upload(name, out, sorted(files))
    hub.upload(name, page, SPACE_FILES, is_space=True)
    return [*sentences, f"uploaded {model}", f"uploaded {space}, the demo"]


def space_card(name: str, *, license: str) -> str:
    """Return the README.md that makes a folder a static page on the Hub."""
    front_matter = {
        "title": name.partition("/")[2],
        "sdk": "static",
        "license": license,
        "models": [name],
    }
    return f"---\n{yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)}---\n"
