"""The command `converter`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from maskfer_edge.command_line import make_app, print_json, print_result, run_app, say
from maskfer_edge.contract import LABELS
from maskfer_edge.dataset import dataset_info
from maskfer_edge.dependencies import extra
from maskfer_edge.errors import InputError, ModelError
from maskfer_edge.quiet import quiet_native_libraries
from maskfer_edge.scenes import scenes_info

if TYPE_CHECKING:
    from maskfer_converter.benchmark import Benchmark
    from maskfer_converter.checks import Check
    from maskfer_converter.graph import Graph, Tensor
    from maskfer_converter.quantize import QuantizeReport
    from maskfer_converter.quantize_detector import DetectorReport

app = make_app("Converts trained networks to checked, self-describing TFLite files; inspects and times them.")

MaxDrop = Annotated[float, typer.Option(min=0, help="Largest accuracy loss allowed, in percentage points.")]
MinAgreement = Annotated[
    float,
    typer.Option(
        min=0, max=100, help="Smallest share of pictures with the same class before and after conversion, in percent."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
WORST_LAYERS = 5


@app.command("quantize")
def quantize_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=".keras file of trainer fit or fit-detector.")],
    calibrate: Annotated[
        Path, typer.Option(help="Data set (trainer build-dataset); for a detector, scenes (build-scenes).")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help=".tflite file to write; a .report.json is written beside it.")
    ],
    form: Annotated[str, typer.Option("--format", help="int8; or float16, dynamic, float to compare.")] = "int8",
    per_class: Annotated[int, typer.Option(min=1, help="Calibration pictures of each class.")] = 72,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of calibration pictures.")] = 0,
    max_drop: MaxDrop = 0.5,
    min_agreement: MinAgreement = 97.0,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Detectors: score from which a box counts as a face. Default: chosen on the validation scenes.",
        ),
    ] = None,
    rescorer: Annotated[
        Path | None, typer.Option(help="Detectors: the second stage, the .keras file of trainer fit-rescorer.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write a model that fails its checks.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    json_: Json = False,
) -> None:
    """Convert MODEL to int8 TFLite, compare both on held-out pictures, and write it if all checks pass."""
    from maskfer_converter.checks import RefusedModelError
    from maskfer_converter.comparison import Limits
    from maskfer_converter.keras_model import RESCORER, read_metadata
    from maskfer_converter.quantize import check_request, quantize, report_path
    from maskfer_converter.quantize_detector import check_rescorer, is_detector, quantize_detector

    refusal = None
    limits = Limits(max_drop, min_agreement)
    check_request(form, out, overwrite, [model, rescorer])
    metadata = read_metadata(model)
    if metadata.get("kind") == RESCORER:
        raise InputError(
            f"{model} is a rescorer; give it by --rescorer, and as MODEL the .keras of trainer fit-detector"
        )
    if not is_detector(metadata) and (rescorer is not None or threshold is not None):
        raise InputError(f"{model} is no detector; --rescorer and --threshold are for detectors")
    if rescorer is not None:
        check_rescorer(rescorer)
    # before TensorFlow is loaded
    (scenes_info if is_detector(metadata) else dataset_info)(calibrate)
    with _progress_status() as progress, quiet_native_libraries():
        common: dict[str, Any] = {"force": force, "overwrite": overwrite, "progress": progress}
        report: QuantizeReport | DetectorReport
        try:
            if is_detector(metadata):
                pictures = per_class * len(LABELS)
                report = quantize_detector(
                    model, calibrate, out, metadata, form, pictures, seed, limits,
                    threshold=threshold, rescorer=rescorer, **common,
                )  # fmt: skip
            else:
                report = quantize(model, calibrate, out, form, per_class, seed, limits, **common)
        except RefusedModelError as error:
            refusal, report = error, cast("QuantizeReport | DetectorReport", error.report)
    if json_:
        print_json(report)
    else:
        _print_report(report)
    if refusal:
        raise refusal
    if not json_:
        print_result(f"\nwrote {out} and {report_path(out)}")
    if report.failed:
        say(f"converter: {out} fails {len(report.failed)} of {len(report.checks)} checks; written because of --force")


@contextmanager
def _progress_status() -> Iterator[Callable[[str], None]]:
    """Shows the step at work on the terminal, if stderr is one; gives a function that takes the step's name."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    with extra("converter"):
        from rich.console import Console
    # a copy of stderr, as the native libraries' chatter to stderr is held back meanwhile
    with (
        os.fdopen(os.dup(sys.stderr.fileno()), "w") as terminal,
        Console(file=terminal, force_terminal=True).status("loading TensorFlow") as status,
    ):
        yield status.update


def _print_report(report: QuantizeReport | DetectorReport) -> None:
    calibrated = report.calibration if isinstance(report.calibration, int) else sum(report.calibration.values())
    print_result(
        f"{report.model}: {report.format}, {report.bytes / 1000:.0f} kB, "
        f"{report.multiply_accumulates / 1e6:.1f} M multiply-accumulates"
        + (f", calibrated on {calibrated} pictures" if calibrated else "")
    )
    if isinstance(report.comparison, dict):
        _print_classes(report)
    else:
        row = report.comparison
        print_result(f"\n{'':18}{'float F1':>9}{report.format + ' F1':>9}{'agree':>8}{'scenes':>8}{'threshold':>11}")
        print_result(
            f"{'validation scenes':18}{row.float_f1:9.1%}{row.converted_f1:9.1%}{row.agreement:8.1%}{row.scenes:8d}"
            f"{report.threshold:11.2f}"
        )
    print_result("")
    _print_benchmark(report.latency)
    print_result("")
    _print_checks(report.checks)


def _print_classes(report: QuantizeReport) -> None:
    print_result(f"\n{'':14}{'float':>8}{report.format:>9}{'agree':>8}{'pictures':>10}")
    for part, row in report.comparison.items():
        accuracies = f"{row.float_accuracy:8.1%}{row.converted_accuracy:9.1%}"
        print_result(f"{part:14}{accuracies}{row.agreement:8.1%}{row.pictures:10d}")
    parts = list(report.comparison)
    print_result(f"\n{'recall':10}" + "".join(f"{part + ', float':>20}{report.format:>9}" for part in parts))
    for label in report.comparison[parts[0]].recall:
        cells = (report.comparison[part].recall[label] for part in parts)
        print_result(f"{label:10}" + "".join(f"{c[0]:20.1%}{c[1]:9.1%}" if c else f"{'-':>20}{'-':>9}" for c in cells))
    if report.layers:
        print_result("\nworst layers, signal to quantisation noise")
        for layer in report.layers[:WORST_LAYERS]:
            print_result(f"{layer.sqnr_db:8.1f} dB  {layer.layer}")


def _print_checks(checks: list[Check]) -> None:
    for check in checks:
        word = {True: "ok", False: "FAILED", None: "-"}[check.passed]
        print_result(f"{word:8}{check.what}{f' ({check.found})' if check.found else ''}")


def _print_benchmark(found: Benchmark) -> None:
    conditions = [f"{found.cores} cores", f"governor {found.governor}" if found.governor else ""]
    conditions.append(f"{found.celsius:.0f} °C" if found.celsius is not None else "")
    print_result(f"{found.cpu}, {', '.join(filter(None, conditions))}")
    width = max(len(timing.model) for timing in found.timings)
    print_result(
        f"{'model':{width}}  {'runtime':15}{'threads':>8}{'median ms':>11}{'p95 ms':>9}{'memory MB':>11}{'kB':>8}"
    )
    for t in found.timings:
        print_result(
            f"{t.model:{width}}  {t.runtime:15}{t.threads:8}{t.median_ms:11.3f}{t.p95_ms:9.3f}{t.memory_mb:11.1f}"
            f"{t.bytes / 1000:8.0f}"
        )
    for runtime, why in found.missing.items():
        print_result(f"{runtime} was not timed: {why}")


@app.command("verify")
def verify_command(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Expression model, a .tflite file of converter quantize.")
    ],
    pictures: Annotated[Path, typer.Argument(metavar="PICTURES", help="Data set made by trainer build-dataset.")],
    max_drop: MaxDrop = 0.5,
    min_agreement: MinAgreement = 97.0,
    json_: Json = False,
) -> None:
    """Check MODEL again: the file itself, and its accuracy on the test split of PICTURES. Exit status 1 if it fails."""
    from maskfer_converter.comparison import Limits
    from maskfer_converter.verify import verify

    with quiet_native_libraries():
        found = verify(model, pictures, Limits(max_drop, min_agreement))
    if json_:
        print_json(found)
    else:
        _print_checks(found.checks)
        for part, share in found.accuracy.items():
            other = "" if found.same_pictures else " (other pictures than the file's own figures)"
            print_result(f"{part}: {share:.1%} right{other}")
    if found.failed:
        from maskfer_converter.checks import failures

        raise ModelError(
            f"{model} fails {len(found.failed)} of {len(found.checks)} checks: {failures(found.failed)}; "
            "do not use it, convert it again"
        )


@app.command("inspect")
def inspect_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Any .tflite file.")], json_: Json = False
) -> None:
    """Show the metadata of MODEL, its operators and their cost, and how each tensor is quantised."""
    from maskfer_converter.inspection import inspect

    found = inspect(model)
    if json_:
        print_json(found)
        return
    print_result(
        f"{found.model}: {found.bytes / 1000:.0f} kB, of which {found.weight_bytes / 1000:.0f} kB constants; "
        f"{found.multiply_accumulates / 1e6:.1f} M multiply-accumulates; needs TFLite {found.graph.min_runtime or '?'}"
    )
    if found.metadata is None:
        print_result(f"no metadata: {found.why}")
    else:
        print_result("")
        for key, value in found.metadata.items():
            print_result(f"{key:18} {_words(value)}")
    _print_graph(found.graph)
    if found.rescorer:
        print_result(
            f"\nrescorer: {found.rescorer.multiply_accumulates / 1e6:.1f} M multiply-accumulates "
            "per box of the second stage"
        )
        _print_graph(found.rescorer)


def _print_graph(graph: Graph) -> None:
    tensors = graph.tensors
    print_result(f"\n{'operator':22}{'version':>8}{'M MACs':>9}  output")
    for op in graph.operators:
        out = tensors[op.outputs[0]]
        print_result(f"{op.name:22}{op.version:8}{op.multiply_accumulates / 1e6:9.2f}  {_shape(out)} {out.dtype}")
    print_result(f"\n{'tensor':40}{'type':>9}{'shape':>16}{'bytes':>9}  scale, zero point")
    for tensor in tensors:
        print_result(
            f"{_cut(tensor.short_name, 39):40}{tensor.dtype:>9}{_shape(tensor):>16}{tensor.bytes:9}  {_scales(tensor)}"
        )


def _words(value: object) -> str:
    """Metadata without the punctuation of JSON."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {f'({_words(v)})' if isinstance(v, dict) else _words(v)}" for key, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def _scales(tensor: Tensor) -> str:
    if not tensor.scales:
        return "-"
    if len(tensor.scales) == 1:
        return f"{tensor.scales[0]:.6g}, {tensor.zero_points[0]}"
    zeros = ", ".join(map(str, sorted(set(tensor.zero_points))))
    return f"{len(tensor.scales)} channels, {min(tensor.scales):.3g} to {max(tensor.scales):.3g}, {zeros}"


@app.command("benchmark")
def benchmark_command(
    models: Annotated[list[Path], typer.Argument(help="Any .tflite files.", metavar="MODEL...")],
    threads: Annotated[list[int] | None, typer.Option(min=1, help="Threads. May be repeated. Default: 1.")] = None,
    runtime: Annotated[
        list[str] | None,
        typer.Option(help="litert, litert-builtin or tflite-runtime. May be repeated. Default: all that work here."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Timed runs of each model.")] = 300,
    warm_up: Annotated[int, typer.Option(min=0, help="Untimed runs of each model before that.")] = 30,
    json_: Json = False,
) -> None:
    """Time MODELs in turns on this machine: median, 95th percentile, memory.

    A detector's second stage is timed on its own.
    """
    from maskfer_converter.benchmark import benchmark, read_models
    from maskfer_edge.runtime import RUNTIMES

    contents = read_models(models)
    with quiet_native_libraries():
        found = benchmark(contents, threads or (1,), runtime or tuple(RUNTIMES), runs, warm_up)
    if json_:
        print_json(found)
    else:
        _print_benchmark(found)


def main() -> None:
    """Entry point of `converter` and `maskfer-converter`."""
    run_app(app, "converter")
