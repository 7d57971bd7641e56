"""Loss and accuracy over the epochs, as a picture that is drawn anew while training goes on."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from maskfer_edge.files import atomic_file


def draw_curves(history: list[dict[str, float]], path: Path) -> None:
    """Draw training and validation curves to a PNG file, which is replaced.

    Args:
        history: One dict an epoch with epoch, loss, val_loss, val_accuracy and, where it was measured, accuracy.
        path: The PNG file.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key not in history[0]:
                continue
            axes.plot(epochs, [row[key] for row in history], label=label, marker="." if len(epochs) < 40 else "")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_file(path, overwrite=True) as partial:
        figure.savefig(partial, dpi=100)
