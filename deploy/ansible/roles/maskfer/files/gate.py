"""Waits until maskfer processes frames steadily on this machine; the role runs it there after each start.

    gate.py [--config FILE] [--steady SECONDS] [--within SECONDS] [--model ID]

Prints one line. Exit status 1 if the time is over, or if the model on trial was put back.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
import tomllib
import urllib.request
from pathlib import Path

# Between two readings; frames that have not grown for the other have stopped.
EVERY_S, STALLED_S = 0.5, 5.0
PROGRAM = "/usr/local/bin/maskfer-edge"


class UnwellError(Exception):
    """Why this machine is not well: one line."""


def metrics_url(config: Path) -> str:
    """Where a run with these settings tells how it is. Raises UnwellError if nowhere."""
    where = tomllib.loads(config.read_text()).get("metrics", "")
    host, _, port = where.rpartition(":")
    if not port:
        raise UnwellError(f"{config} does not set metrics, so that nothing tells whether frames flow")
    # what listens everywhere listens here
    return f"http://{ {'': '127.0.0.1', '0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}/metrics"


def read_frames(url: str) -> int:
    """Frames processed so far. Raises OSError if nothing answers, ValueError if the camera is lost."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        text = answer.read().decode()
    values = dict(re.findall(r"^(maskfer_frames_total|maskfer_camera_up) (\S+)$", text, re.MULTILINE))
    if len(values) != 2:
        raise ValueError("what answers there is not maskfer")
    if float(values["maskfer_camera_up"]) != 1:
        raise ValueError("the camera is lost")
    return int(float(values["maskfer_frames_total"]))


def wait_for_frames(url: str, steady_s: float, deadline: float) -> int:
    """Wait until frames have flowed for `steady_s` without a break.

    Args:
        url: Of the metrics.
        steady_s: Seconds; a restart or a lost camera meanwhile begins them anew.
        deadline: Of `time.monotonic`.

    Returns:
        Frames processed so far.

    Raises:
        UnwellError: If the time is over.
    """
    newest, begun, grown = None, 0.0, 0.0
    while True:
        now = time.monotonic()
        try:
            frames = read_frames(url)
        except (OSError, ValueError) as error:
            problem, newest, begun = f"{url}: {getattr(error, 'reason', error)}", None, 0.0
        else:
            if newest is None or frames < newest or (frames == newest and now - grown > STALLED_S):
                begun = 0.0
            elif frames > newest:
                begun, grown = begun or now, now
            problem, newest = f"{frames} frames so far, but not {steady_s:g} s without a break", frames
            if begun and grown - begun >= steady_s:
                return frames
        if now > deadline:
            raise UnwellError(problem)
        time.sleep(EVERY_S)


def wait_for_model(model: str, deadline: float) -> None:
    """Wait until an installed model has passed its trial.

    Args:
        model: Its ID.
        deadline: Of `time.monotonic`.

    Raises:
        UnwellError: If it was put back, or the time is over.
    """
    while True:
        listed = subprocess.run([PROGRAM, "model", "list", "--json"], capture_output=True, text=True, check=True)
        slots = [json.loads(listed.stdout)[kind] for kind in ("expression", "detector")]
        for slot in slots:
            if slot["put_back"] == model:
                raise UnwellError(f"model {model} was put back: {slot['reason']}")
            if slot["in_use"] == model and not slot["on_trial"]:
                return
        if time.monotonic() > deadline:
            on_trial = any(slot["in_use"] == model for slot in slots)
            raise UnwellError(f"model {model} {'has not passed its trial yet' if on_trial else 'is not in use'}")
        time.sleep(EVERY_S)


def options() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="Waits until maskfer processes frames steadily on this machine.")
    parser.add_argument("--config", type=Path, default=Path("/etc/maskfer/maskfer.toml"))
    parser.add_argument("--steady", type=float, default=10.0, help="seconds for which frames must flow")
    parser.add_argument("--within", type=float, default=120.0, help="seconds before which they must")
    parser.add_argument("--model", help="ID of an installed model that must have passed its trial")
    return parser


def main() -> int:
    """Entry point."""
    said = options().parse_args()
    deadline = time.monotonic() + said.within
    try:
        frames = wait_for_frames(metrics_url(said.config), said.steady, deadline)
        if said.model:
            wait_for_model(said.model, deadline)
    except UnwellError as error:
        sys.stdout.write(f"not well within {said.within:g} s: {error}\n")
        return 1
    sys.stdout.write(f"{frames} frames, and more come\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
