"""`distgan export`: a generator for use without distgan, with a model card for Hugging Face.

run -> generator.safetensors + generator.json, or generator.onnx -> samples.png -> README.md
"""

import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from distgan.commands.output import writing_to
from distgan.config.flat import identity_values
from distgan.config.schema import Config
from distgan.errors import UserError
from distgan.images import save_grid
from distgan.networks.base import ConditionalSpec, GeneratorSpec
from distgan.networks.build import build_generator
from distgan.networks.generator import Generator
from distgan.networks.generator_file import (
    WAS_IMPROVING,
    YOUNG_UNTIL,
    find_generator,
    load_generator,
    read_description,
    save_generator,
    weights_of,
)
from distgan.networks.latents import generate
from distgan.networks.mixture import MixtureSpec, classes_of
from distgan.networks.sizes import pyramid, sides
from distgan.reporting.console import say_in_terminal
from distgan.reporting.run_record import RunRecord, read_record
from distgan.run.files import is_run
from distgan.run.sample_grid import COLUMNS, class_grid
from distgan.text import format_number
from shards.files import sha256_of_file, write_atomic

MARK_START = "<!-- Written by distgan export."  # a card without this mark was edited by its owner
CARD_MARK = f"{MARK_START} Delete this line to keep your own version. -->"
CARD_FILES = ["README.md", "samples.png"]
FILES = {"safetensors": "generator.safetensors", "onnx": "generator.onnx"}
SHA256_KEY = "generator.safetensors.sha256"  # in the metadata of an ONNX file
# Largest difference of images in [-1, 1] between PyTorch and onnxruntime: 1/8 of a grey level.
TOLERANCE = 1e-3


def export(
    source: Path, out: Path, *, format: str, license: str, hub_name: str | None = None
) -> list[str]:
    """Write a generator and its model card to a folder; return a sentence per step.

    `source` is a run folder, a checkpoint folder or a generator file. With a `hub_name` the card
    shows how to load the generator from the Hugging Face Hub. Raises UserError.
    """
    generator = load_generator(source)
    facts = read_facts(source)
    record = read_record(source) if is_run(source) else None
    with writing_to(out, option="--out"):
        out.mkdir(parents=True, exist_ok=True)
        wrote_weights = WRITERS[format](generator, out, facts)
        images, columns = sample_images(generator)
        save_grid(images, out / "samples.png", columns=columns)
        formats = formats_in(out, format)
        sentences = [wrote_weights, *explain_left_out(out, formats)]
        card = out / "README.md"
        if card.exists() and MARK_START.encode() not in card.read_bytes():
            return [*sentences, f"kept {card}, which you have edited"]
        text = model_card(
            formats, generator.spec, facts, record=record, license=license, hub_name=hub_name
        )
        # An empty card, left by a process that was killed, would be taken for an edited one.
        write_atomic(card, text)
    return [
        *sentences,
        f"wrote {card}; fill in what only you know: the images, their licence, "
        "what the model is for",
    ]


def formats_in(out: Path, written: str) -> list[str]:
    """Return the formats in which a folder holds the generator that was just written to it.

    A file of the other format may be left from an export of another generator.
    """
    weights, model = (out / name for name in FILES.values())
    if not (weights.is_file() and model.is_file()):
        return [written]
    is_same = sha256_of_file(weights).encode() in model.read_bytes()
    return list(FILES) if is_same else [written]


def explain_left_out(out: Path, formats: list[str]) -> list[str]:
    """Return a sentence about each generator in a folder that the card does not mention."""
    return [
        f"left out {out / name}, which is of another generator or does not say of which: "
        f"write it again with --format {format}, or delete it"
        for format, name in FILES.items()
        if format not in formats and (out / name).exists()
    ]


def sample_images(generator: Generator) -> tuple[Tensor, int | None]:
    """Return images for the card, and how many are in a row: of a conditional GAN one class."""
    if not isinstance(generator.spec, ConditionalSpec):
        return generator.sample(64), None
    latents, labels = class_grid(generator.inputs(COLUMNS)[0], len(generator.classes))
    return generator.images(latents, labels), COLUMNS


def read_facts(source: Path) -> dict[str, Any]:
    """Return the facts in a generator's description that are not part of its spec.

    Raises UserError for a fact of the wrong kind.
    """
    files = find_generator(source)
    description = read_description(files)
    facts = {
        "images_seen": description.get("images_seen"),
        YOUNG_UNTIL: description.get(YOUNG_UNTIL),
        WAS_IMPROVING: description.get(WAS_IMPROVING),
        "dataset": description.get("dataset") or description.get("fingerprint"),
        "weights": description.get("weights", "moving average"),
    }
    for name, kind in (("images_seen", int), ("dataset", str), ("weights", str)):
        if not isinstance(facts[name], kind | None):
            raise UserError(
                f"{files.description}: {name} is {facts[name]!r}, which is no "
                f"{'number' if kind is int else 'text'}; correct it, or remove it"
            )
    return facts


def write_safetensors(generator: Generator, out: Path, facts: dict[str, Any]) -> str:
    """Write generator.safetensors and generator.json."""
    save_generator(generator.network, generator.spec, out, facts=facts)
    return f"wrote {out / 'generator.safetensors'} and {out / 'generator.json'}"


def write_onnx(generator: Generator, out: Path, facts: dict[str, Any]) -> str:
    """Write generator.onnx for batches of any size, and compare its images with PyTorch's."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise UserError(
            f"an ONNX file needs {error.name}; type: pip install 'distgan[onnx]'"
        ) from None
    say_in_terminal("converting to ONNX ...")
    path, inputs = out / "generator.onnx", generator.inputs(7)
    names = ["latents", "labels"][: len(inputs)]
    network = generator.network.to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings inside the exporter's libraries
        program = torch.onnx.export(
            network,
            tuple(each[:2] for each in inputs),
            dynamo=True,
            verbose=False,
            input_names=names,
            output_names=["images"],
            dynamic_shapes=({0: torch.export.Dim("batch")},) * len(inputs),
        )
    assert program is not None
    # So that it is known to be of the generator.safetensors beside it; see `formats_in`.
    program.model.metadata_props[SHA256_KEY] = hashlib.sha256(weights_of(network)).hexdigest()
    unchecked = path.with_suffix(".unchecked.onnx")
    difference = 0.0
    try:
        program.save(unchecked, external_data=False)
        session = onnxruntime.InferenceSession(unchecked, providers=["CPUExecutionProvider"])
        for num in (7, 1):
            batch = [each[:num] for each in inputs]
            feeds = {name: each.numpy() for name, each in zip(names, batch, strict=True)}
            (images,) = session.run(None, feeds)
            expected = generate(network, *batch)
            difference = max(difference, float((torch.from_numpy(images) - expected).abs().max()))
        if difference > TOLERANCE:
            raise UserError(
                f"onnxruntime's images differ from torch's by {difference:.2g}, so no ONNX file "
                "is written; distgan export RUN --format safetensors writes a file for PyTorch"
            )
        os.replace(unchecked, path)
    finally:
        unchecked.unlink(missing_ok=True)
    return f"wrote {path}; onnxruntime's images differ from torch's by at most {difference:.1g}"


WRITERS = {"safetensors": write_safetensors, "onnx": write_onnx}


def model_card(
    formats: list[str],
    spec: GeneratorSpec,
    facts: dict[str, Any],
    *,
    record: RunRecord | None,
    license: str,
    hub_name: str | None,
) -> str:
    """Return the text of the model card for a generator in these formats."""
    classes, is_conditional = classes_of(spec), isinstance(spec, ConditionalSpec)
    height, width = sides(spec.image_size)
    kind = spec.architecture.upper()
    if isinstance(spec, MixtureSpec):
        kind = f"{spec.part.architecture.upper()} for each of {len(classes)} classes"
    if is_conditional:
        kind = f"conditional {kind} of {len(classes)} classes"
    front_matter = {
        "license": license,
        "library_name": "pytorch",
        **({} if is_conditional else {"pipeline_tag": "unconditional-image-generation"}),
        "tags": ["gan", spec.architecture, "distgan"],
    }
    return render_card(
        front_matter=yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True).strip(),
        mark=CARD_MARK,
        title=record.name if record else spec.architecture.upper(),
        kind=kind,
        hub_name=hub_name,
        architecture=spec.architecture,
        classes=classes,
        is_conditional=is_conditional,
        height=height,
        width=width,
        channels=spec.channels,
        shown=shown_channels(spec.channels),
        shown_of_one=shown_channels(spec.channels).removeprefix("[:").removesuffix("]"),
        latent_dim=spec.latent_dim,
        start=pyramid(spec.image_size),
        norm_sizes=norm_sizes(spec),
        refinements=min(spec.refinements, pyramid(spec.image_size).num_doublings + 1),
        has_safetensors="safetensors" in formats,
        has_onnx="onnx" in formats,
        training=training_rows(facts, record),
        **quality_values(record),
    )


def norm_sizes(spec: GeneratorSpec) -> list[int]:
    """Return the numbers of scales and shifts of all norms, empty if latents do not make them."""
    if not spec.code_dim:
        return []
    with torch.device("meta"):
        network: Any = build_generator(spec)
    return network.modulation.sizes


def shown_channels(num_channels: int) -> str:
    """Return what selects, of images [B, C, H, W] in code, the channels that a PNG can show."""
    return "" if num_channels in (1, 3) else f"[:, :{1 if num_channels == 2 else 3}]"


def render_card(**values: Any) -> str:
    """Return the template of the card, filled with values."""
    environment = Environment(
        loader=PackageLoader("distgan.reporting"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["literal"] = literal
    return environment.get_template("model_card.md.j2").render(**values)


def training_rows(facts: dict[str, Any], record: RunRecord | None) -> list[tuple[str, str]]:
    """Return rows (name, value) about the generator's training data and settings."""
    images_seen = facts["images_seen"]
    rows = [
        ("data fingerprint", facts["dataset"] or "unknown"),
        ("real images seen", f"{images_seen:,}" if images_seen else "unknown"),
        ("weights", facts["weights"]),
    ]
    if record is not None:
        names = {*identity_values(Config()), "train.epochs", "train.kimg"}
        rows += [
            (setting.name, setting.value)
            for setting in record.settings_table
            if setting.is_changed and setting.name in names
        ]
    return rows


def quality_values(record: RunRecord | None) -> dict[str, Any]:
    """Return the verdict and the last evaluation, with its protocol, for the template."""
    if record is None or not record.evaluations:
        return {"quality": [], "verdict": "", "verdict_detail": "", "protocol": ""}
    last = record.evaluations[-1]
    return {
        "quality": [
            (name, format_number(value), format_number(last.reals.get(name)))
            for name, value in last.values.items()
        ],
        "verdict": record.verdict,
        "verdict_detail": record.verdict_detail,
        "protocol": record.protocol_line,
    }


def literal(text: object) -> str:
    """Return text of any origin as Markdown code on one line, or nothing if it is empty."""
    line = " ".join(str(text).split()).replace("`", "'").replace("|", "\\|")
    return f"`{line}`" if line else ""
