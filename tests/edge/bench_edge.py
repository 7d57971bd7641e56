"""Milliseconds by stage on the demonstration clip, and the loop against a naive one in the same run.

The naive loop does what is often seen: it opens the interpreter anew for every face.
"""

import statistics
import time

from maskfer_edge.classifier import Classifier, default_model
from maskfer_edge.contract import preprocess
from maskfer_edge.detector import HaarDetector
from maskfer_edge.errors import DependencyError
from maskfer_edge.runtime import RUNTIMES
from maskfer_edge.sources import open_camera


def median_ms(work, items):
    times = []
    for item in items:
        started = time.perf_counter()
        work(item)
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def main():
    frames = []
    with open_camera("demo") as camera:
        while (frame := camera.read()) is not None:
            frames.append(frame.image)
    detector, model = HaarDetector(), default_model()
    detections = [(image, detector(image)) for image in frames]
    boxes = [(image, found[0].box) for image, found in detections if found]
    faces = [preprocess(image, box) for image, box in boxes]

    print(f"demo clip: {len(frames)} frames of {frames[0].shape[1]}x{frames[0].shape[0]}, {len(faces)} with a face")
    print(f"{'Haar detection':32} {median_ms(detector, frames):8.2f} ms")
    print(f"{'crop and preprocess':32} {median_ms(lambda item: preprocess(*item), boxes):8.3f} ms")
    for runtime in RUNTIMES:
        try:
            classifier = Classifier(model, runtime, mirror=False)
        except DependencyError as error:
            print(f"{'network, ' + runtime:32} not here: {error}")
            continue
        kept = median_ms(classifier, faces)
        naive = median_ms(lambda face, runtime=runtime: Classifier(model, runtime, mirror=False)(face), faces[:20])
        print(f"{'network, ' + runtime:32} {kept:8.2f} ms; opened anew each time {naive:.2f} ms ({naive / kept:.0f}x)")


if __name__ == "__main__":
    main()
