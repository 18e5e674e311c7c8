"""TensorRTPredictor as a server's target where there is no GPU."""

import standin_tensorrt as standin

from kservekit import cuda
from kservekit.predictors import tensorrt_runtime
from kservekit.predictors.tensorrt import TensorRTPredictor


class OnStandIn(TensorRTPredictor):
    def load(self) -> bool:
        gpu = standin.Gpu()
        library = standin.library(gpu, standin.Model())
        tensorrt_runtime.tensorrt, cuda.load = lambda: library, lambda extra: gpu.cuda
        return super().load()
