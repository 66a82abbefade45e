"""Roboflow's InferencePipeline around the OpenVINO call of `benchmarks.loops`, for its own environment.

Run by `python -m benchmarks.throughput CLIP --roboflow PYTHON`, where PYTHON is the interpreter of an environment with
`inference-cpu` and `openvino`; nothing of this project is imported.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import cv2
import numpy as np
import openvino as ov

SIDE = 224


def main(clip: str, model: str, streams: int, seconds: float, warm_up: float) -> None:
    """Print frames per second between the end of the warm-up and the end."""
    os.environ |= {"METRICS_ENABLED": "False", "TELEMETRY_OPT_OUT": "True"}
    from inference.core.interfaces.stream.inference_pipeline import (  # type: ignore[import-not-found]
        InferencePipeline,
    )

    settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"}
    jobs = ov.AsyncInferQueue(ov.Core().compile_model(model, "CPU", settings))
    answers: dict[int, int] = {}
    jobs.set_callback(
        lambda request, i: answers.update({i: int(request.get_output_tensor(0).data.argmax())})
    )
    times: list[float] = []

    def infer(frames: list[Any]) -> list[int]:
        for i, frame in enumerate(frames):
            small = cv2.resize(frame.image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
            jobs.start_async([np.ascontiguousarray(small[None, :, :, ::-1])], userdata=i)
        jobs.wait_all()
        return [answers[i] for i in range(len(frames))]

    def take(predictions: Any, frames: Any) -> None:
        times.extend([time.perf_counter()] * (len(frames) if isinstance(frames, list) else 1))
        if times[-1] > times[0] + warm_up + seconds:
            pipeline.terminate()

    pipeline = InferencePipeline.init_with_custom_logic(
        video_reference=[clip] * streams, on_video_frame=infer, on_prediction=take
    )
    pipeline.start()
    pipeline.join()
    begin, end = times[0] + warm_up, min(times[-1], times[0] + warm_up + seconds)
    print(json.dumps({"rate": sum(begin <= at < end for at in times) / (end - begin)}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
