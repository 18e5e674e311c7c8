"""A transformer as a KServe user writes it, under stock kserve.ModelServer: no hook overridden, the predictor by flags.

--predictor_host and --predictor_protocol reach it as kserve.PredictorConfig.
"""

from __future__ import annotations

import kserve
from kserve.model_server import parser


class PassOn(kserve.Model):  # type: ignore[misc]
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = True


if __name__ == "__main__":
    flags, _ = parser.parse_known_args()
    kserve.ModelServer(
        predictor_config=kserve.PredictorConfig(
            predictor_host=flags.predictor_host,
            predictor_protocol=flags.predictor_protocol,
            predictor_request_timeout_seconds=flags.predictor_request_timeout_seconds,
        )
    ).start([PassOn(flags.model_name)])
