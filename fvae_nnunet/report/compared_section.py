"""The chapter on what was compared: cases, models, settings, creation of the views, versions."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fvae_nnunet.command_lines import options_of
from fvae_nnunet.evaluation.segmentation.lesion_summary import SIZES
from fvae_nnunet.numbers_as_text import counted, listed, percent, short_sha256
from fvae_nnunet.report.blocks import Block, Column, Facts, Heading, Paragraph, Table
from fvae_nnunet.report.case_images import View, unique_names
from fvae_nnunet.report.results import Results
from fvae_nnunet.report.setting_text import setting_text

_EMPTY_MASKS = {
    "nan": "a label missing from both reference and prediction has no value and is left out of means; one missing from "
    "only one of them scores 0 in DSC and NSD and has no HD95",
    "flare": "a label missing from both reference and prediction scores 1 in DSC and NSD; one missing from only one of "
    "them scores 0; neither has an HD95",
}

_SETTING_NAMES = {
    "vae": "VAE",
    "weights_sha256": "weights, sha256",
    "strength": "strength",
    "precision": "precision",
    "hu_window": "HU window",
    "inner_windows": "HU windows inside of it",
    "enlarge": "pixels enlarged (times)",
    "pixel_mm": "pixels (mm)",
    "average": "passes averaged",
    "scheme": "scheme",
    "window_slices": "window (slices)",
    "overlap_slices": "overlap (slices)",
    "truncate": "int16 by truncation",
    "posterior_seed": "latent",
}
"""Names of the settings of a manifest, in this order; others follow under their own names."""


def compared_blocks(results: Sequence[Results], views: Sequence[View], *, with_images: bool) -> Iterator[Block]:
    """Yield the chapter; nothing without results and views."""
    if not results and not views:
        return
    yield Heading("What was compared")
    for of in results:
        if len(results) > 1:
            yield Heading(of.title, 3)
        yield from _results_blocks(of)
    if results:
        yield Paragraph(
            "When this report was made, all files existed"
            + (" with these sha256" if any(of.content["kind"] == "comparison" for of in results) else "")
            + ("; images and views had the geometry of the references." if with_images or views else ".")
        )
    if views:
        yield Heading("Views", 3)
        yield _view_table(views)


def _results_blocks(results: Results) -> Iterator[Block]:
    content = results.content
    settings = content["settings"]
    reference = content["reference"]
    rows = [["references", reference["folder"], short_sha256(reference["sha256"]), str(len(results.cases)), ""]]
    for model in content["models"]:
        missing = model["missing"]
        predictions = str(len(results.cases) - len(missing))
        name = results.full_names[model["name"]]
        rows.append([name, model["folder"], short_sha256(model["sha256"]), predictions, str(len(missing))])
    notes = [
        f"{model['name']} lacks predictions of {listed(model['missing'])}"
        for model in content["models"]
        if model["missing"]
    ]
    yield Table(
        [Column("", "text"), Column("folder", "code"), Column("sha256", "code"), Column("cases"), Column("missing")],
        rows,
        notes=notes,
    )
    yield Facts(
        [
            ("Results", str(results.path)),
            ("Labels", listed(list(results.label_names.values()))),
            ("NSD", f"at {listed([f'{mm:g}' for mm in settings['tolerances_mm']])} mm"),
            ("Empty masks", _EMPTY_MASKS[settings["empty_masks"]]),
            *_lesion_facts(results),
            *_statistics_facts(settings, results),
            ("Versions", ", ".join(f"{name} {version}" for name, version in content["made_with"].items())),
        ]
    )


def _lesion_facts(results: Results) -> list[tuple[str, str]]:
    rule = results.content["settings"]["lesions"]
    if not rule["labels"]:
        return []
    names = listed([results.label_names[label] for label in rule["labels"]])
    sizes = ", ".join(SIZES.get(size, size) for size in rule["size_classes"])
    return [
        (
            "Lesions",
            f"connected components ({rule['connectivity']} neighbours) of {names}; detected if at least "
            f"{percent(rule['detection_overlap'])} of the voxels are predicted; sizes by equivalent diameter: {sizes}",
        )
    ]


def _statistics_facts(settings: Mapping[str, Any], results: Results) -> list[tuple[str, str]]:
    intervals = (
        f"{percent(settings['confidence'])} intervals",
        f"bootstrap over cases ({settings['bootstrap']}), {settings['resamples']} resamples, seed {settings['seed']}",
    )
    if not results.is_comparison:
        return [intervals]
    family = len(results.content["measures"][0]["comparisons"])
    return [
        intervals,
        ("Test", f"{settings['test']}, over cases; zero_method of scipy: {settings['zero_method']}"),
        ("Correction", f"{settings['correction']}; family: {settings['family']} ({counted(family, 'comparison')})"),
    ]


def _view_table(views: Sequence[View]) -> Table:
    """A table with a column for each view and a row for each setting of any of them."""
    names = unique_names([(view.name, view.folder) for view in views])
    columns = {name: _settings_of(view) for name, view in zip(names, views, strict=True)}
    rows = [
        [setting, *(settings.get(setting, "") for settings in columns.values())]
        for setting in dict.fromkeys(setting for settings in columns.values() for setting in settings)
    ]
    notes = []
    for name, view in zip(names, views, strict=True):
        if view.manifest is None:
            notes.append(f"{name} has no manifest, so its settings are not recorded")
        if view.is_preprocessed:
            notes.append(f"{name} is a view of nnU-Net's preprocessed data and holds no HU, so there are no pictures")
    return Table([Column("", "text"), *(Column(name, "text") for name in names)], rows, notes=notes)


def _settings_of(view: View) -> dict[str, str]:
    manifest = view.manifest or {"settings": {}, "made_with": {}}
    settings, made_with = manifest["settings"], manifest["made_with"]
    known = {name: settings[key] for key, name in _SETTING_NAMES.items() if key in settings}
    others = {
        key.replace("_", " "): value
        for key, value in settings.items()
        if key not in _SETTING_NAMES and not isinstance(value, dict)
    }
    spacing_mm = settings.get("preprocessing", {}).get("spacing_mm")
    if spacing_mm:
        others["spacing of the data, z y x (mm)"] = ", ".join(f"{edge:.4g}" for edge in spacing_mm)
    if "posterior_seed" in settings:
        seed = settings["posterior_seed"]
        known["latent"] = "mode of the posterior" if seed is None else f"drawn from the posterior, seed {seed}"
    if "weights_sha256" in settings:
        known["weights, sha256"] = short_sha256(settings["weights_sha256"])
    return {
        "folder": str(view.folder),
        **{name: _value_text(name, value) for name, value in (known | others).items()},
        **({"weights from": made_with["weights"]} if "weights" in made_with else {}),
        **({"options": shlex.join(options_of(made_with["parameters"]))} if "parameters" in made_with else {}),
        **({"versions": _versions_of(made_with)} if made_with else {}),
    }


def _versions_of(made_with: Mapping[str, Any]) -> str:
    packages = ("fvae_nnunet", "nnunetv2", "torch", "diffusers")
    return ", ".join(f"{name} {made_with[name]}" for name in packages if name in made_with)


def _window_text(window: Sequence[float]) -> str:
    return f"{window[0]:g} to {window[1]:g}".replace("-", "−")


def _value_text(name: str, value: Any) -> str:
    if name == _SETTING_NAMES["hu_window"]:
        return _window_text(value)
    if name == _SETTING_NAMES["inner_windows"]:
        return "; ".join(map(_window_text, value))
    return setting_text(value)
