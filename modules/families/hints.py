"""What the shapes of a checkpoint's tensors can't tell: how many heads share a width, what the UNet predicts. It is in
the .yaml beside the file, or in the file's metadata; or nowhere, then the family's usual value holds."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError

from modules.library.header import Header

CONFIGS = Path(__file__).parent / "configs"
Prediction = Literal["epsilon", "v_prediction"]
PREDICTIONS: Mapping[str, Prediction] = {
    **{"eps": "epsilon", "epsilon": "epsilon"},
    **{"v": "v_prediction", "v_prediction": "v_prediction", "v-prediction": "v_prediction", "vpred": "v_prediction"},
}


class LayoutError(ValueError):
    """The tensors, or the .yaml beside them, don't make up a model; the message says why."""


@contextmanager
def building(part: str) -> Iterator[None]:
    """Sizes that no network can have make the libraries stumble; here that becomes a LayoutError."""
    try:
        with torch.device("meta"):  # shapes only: no memory, no random numbers
            yield
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, StrictDataclassError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()[:200]
        raise LayoutError(f"no {part} can be built of its sizes ({reason})") from error


@dataclass(frozen=True)
class Hints:
    unet_heads: int | list[int] | None = None
    unet_head_channels: int | None = None
    text_heads: int | None = None
    text_activation: str | None = None
    open_clip_heads: int | None = None
    prediction: Prediction | None = None
    zero_terminal_snr: bool = False

    def or_head_channels(self, width: int) -> "Hints":
        """With heads of this width in the UNet, where nothing else is said."""
        return self if self.unet_heads or self.unet_head_channels else replace(self, unet_head_channels=width)


def hints_from(config: Path | None, metadata: Mapping[str, str]) -> Hints:
    """From the .yaml in the original layout if there is one, else from the metadata: our own key, and the "modelspec"
    that trainers write.

    Raises LayoutError if the .yaml can't be read.
    """
    stated = PREDICTIONS.get(metadata.get("modelspec.prediction_type", "").lower())
    if config is not None:
        hints = _hints_from_yaml(config)
        return replace(hints, prediction=hints.prediction or stated)
    try:
        sizes = json.loads(metadata.get("easel.config", "{}"))
        unet, text, open_clip = (sizes.get(part, {}) for part in ("unet", "text_encoder", "text_encoder_2"))
        return Hints(
            _heads(unet.get("num_heads")),
            _number(unet.get("num_head_channels")),
            _number(text.get("num_attention_heads")),
            text.get("hidden_act"),
            _number(open_clip.get("num_attention_heads")),
            stated,
            sizes.get("zero_terminal_snr") is True,
        )
    except (ValueError, AttributeError) as error:
        raise LayoutError(f"the metadata key easel.config is not what it should be: {error}") from error


def _heads(value: Any) -> int | list[int] | None:
    """One number, or one for each level."""
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(number) is not int or number < 1 for number in numbers):
        raise ValueError(f"{value!r} is no number of heads")
    return value if numbers else None


def _number(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{value!r} is no number of heads, nor their width")
    return value


def marked(header: Header, name: Literal["v_pred", "ztsnr"]) -> bool:
    """Whether the file has the empty tensor by which community checkpoints tell how they were trained."""
    return name in header.tensors


def _hints_from_yaml(config: Path) -> Hints:
    try:
        params = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]["params"]
        unet = (params.get("unet_config") or params["network_config"])["params"]  # of SD 1 and 2; of SDXL
        text = (params.get("cond_stage_config") or {}).get("params") or {}
        heads = unet.get("num_heads")
        folder = config.parent / str(text["version"]) if "version" in text else None
        if folder and (folder / "config.json").is_file() and config.parent.resolve() in folder.resolve().parents:
            text = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return Hints(
            unet_heads=_number(heads if heads != -1 else None),  # -1: by their width
            unet_head_channels=_number(unet.get("num_head_channels") if unet.get("num_head_channels") != -1 else None),
            text_heads=_number(text.get("num_attention_heads") or text.get("heads")),
            text_activation=text.get("hidden_act"),
            prediction=_prediction(params),
            zero_terminal_snr=bool(params.get("zero_terminal_snr") or params.get("zsnr")),
        )
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise LayoutError(
            f"{config.name} beside it can't be read as a model configuration ({error!r}); fix or remove it"
        ) from error


def _prediction(params: Mapping[str, Any]) -> Prediction | None:
    if "parameterization" in params or "unet_config" in params:  # SD 1 and 2
        return PREDICTIONS[params.get("parameterization", "eps")]
    scaling = (params.get("denoiser_config") or {}).get("params", {}).get("scaling_config") or {}  # SDXL
    name = str(scaling.get("target", "")).rsplit(".", 1)[-1]
    return "v_prediction" if name.startswith("V") else "epsilon" if name else None


def config_of(family: str, name: str) -> dict[str, Any]:
    """One of the JSON files that hold the usual sizes of a family's parts."""
    loaded: dict[str, Any] = json.loads((CONFIGS / family / f"{name}.json").read_text(encoding="utf-8"))
    return loaded
