"""The command `converter`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from maskfer_edge.command_line import make_app, print_json, print_result, run_app
from maskfer_edge.quiet import quiet_native_libraries

app = make_app("Converts trained networks to self-describing int8 TFLite files.")


@app.callback()
def _converter() -> None:
    pass


@app.command("quantize")
def quantize_command(
    model: Annotated[Path, typer.Argument(help=".keras file of trainer fit.")],
    calibrate: Annotated[Path, typer.Option(help="Data set made by trainer build-dataset.")],
    out: Annotated[Path, typer.Option("-o", "--out", help=".tflite file to write.")],
    per_class: Annotated[int, typer.Option(min=1, help="Calibration pictures of each class.")] = 72,
    seed: Annotated[int, typer.Option(help="Of the choice of calibration pictures.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as one JSON object.")] = False,
) -> None:
    """Quantise MODEL to full integers and compare it with the float network on the test split."""
    from maskfer_converter.quantize import quantize

    with quiet_native_libraries():
        report = quantize(model, calibrate, out, per_class, seed, overwrite)
    if json_:
        print_json(report)
        return
    print_result(f"{report.model}: {report.bytes / 1000:.0f} kB, calibrated on {report.calibration_pictures} pictures")
    print_result(f"{'':14}{'float':>8}{'int8':>8}{'agree':>8}{'pictures':>10}")
    for part, row in report.accuracy.items():
        print_result(f"{part:14}{row['float']:8.1%}{row['int8']:8.1%}{row['agreement']:8.1%}{row['pictures']:10d}")


def main() -> None:
    """Entry point of `converter` and `maskfer-converter`."""
    run_app(app, "converter")
