"""ComfyUI's graph as data: nodes and their inputs, from the API's prompt or from the editor's workflow. Walks are
bounded: a graph may be huge, and may have cycles."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

MAX_NODES = 5_000
MAX_INPUTS = 200  # of one node
MAX_TEXT = 20_000  # characters of one node
MAX_VISITS = 20_000  # of nodes, in all walks of one graph together
MAX_DEPTH = 100

# The widgets of nodes in the order in which the editor keeps their values; "" is one that says nothing.
_WIDGETS: Mapping[str, tuple[str, ...]] = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler", "start_at_step")
    + ("end_at_step", "return_with_leftover_noise"),
    "SamplerCustom": ("add_noise", "noise_seed", "", "cfg"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "KarrasScheduler": ("steps", "sigma_max", "sigma_min", "rho"),
    "RandomNoise": ("noise_seed", ""),
    "CFGGuider": ("cfg",),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("config_name", "ckpt_name"),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeSDXL": ("width", "height", "crop_w", "crop_h", "target_width", "target_height", "text_g", "text_l"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "VAELoader": ("vae_name",),
    "LatentUpscale": ("upscale_method", "width", "height", "crop"),
    "LatentUpscaleBy": ("upscale_method", "scale_by"),
    "ImageScale": ("upscale_method", "width", "height", "crop"),
    "ImageScaleBy": ("upscale_method", "scale_by"),
    "UpscaleModelLoader": ("model_name",),
    "LoadImage": ("image",),
    "PrimitiveNode": ("value", ""),
}
_VALUES = ("value", "Value", "seed", "noise_seed", "int", "float", "number", "text", "string", "String", "prompt")
_MEASURED = ("image", "images", "pixels", "samples", "latent", "latent_image", "model", "clip", "vae")
_MUTED, _BYPASSED = 2, 4


@dataclass(frozen=True)
class Node:
    id: str
    kind: str
    inputs: Mapping[str, Any]  # values, and links: [id, slot]

    def links(self) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in self.inputs.items() if is_link(value))


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and type(value[1]) is int


class Graph:
    def __init__(self, nodes: Mapping[str, Node]):
        self.nodes = nodes
        self._visits = 0
        self._known: dict[tuple[str, str, bool], Any] = {}  # values of nodes; None while one is looked for

    def spend(self) -> bool:
        """False once the graph has been walked enough."""
        self._visits += 1
        return self._visits <= MAX_VISITS

    @property
    def exhausted(self) -> bool:
        return self._visits > MAX_VISITS

    def node(self, link: Any) -> Node | None:
        return self.nodes.get(str(link[0])) if is_link(link) else None

    def value(self, node: Node, *names: str, text: bool = False) -> Any:
        """The first of these inputs that has a value, also through nodes that only hold one. `text`: no number."""
        for name in names:
            found = self._resolved(node.inputs.get(name), name, text)
            if found is not None:
                return found
        return None

    def upstream(self, link: Any, lanes: frozenset[str] | None = None) -> Iterator[Node]:
        """The node that it comes from, then those before it, the nearest first; through these inputs only."""
        seen: set[str] = set()
        waiting = deque([link])
        while waiting:
            node = self.node(waiting.popleft())
            if node is None or node.id in seen or not self.spend():
                continue
            seen.add(node.id)
            yield node
            waiting.extend(value for name, value in node.links() if lanes is None or name in lanes)

    def _resolved(self, value: Any, name: str, text: bool, depth: int = 0) -> Any:
        if not is_link(value):
            cut = value[:MAX_TEXT] if isinstance(value, str) else value
            return cut if isinstance(value, str if text else str | int | float | bool) else None
        node = self.node(value)
        if node is None or depth > MAX_DEPTH or not self.spend():
            return None
        key = (node.id, name, text)
        if key not in self._known:
            self._known[key] = None
            self._known[key] = self._held(node, name, text, depth)
        return self._known[key]

    def _held(self, node: Node, name: str, text: bool, depth: int) -> Any:
        """The value that a node stands for."""
        if text and (joined := self._joined(node, depth)) is not None:
            return joined
        if any(lane in node.inputs for lane in _MEASURED):
            return None  # what it gives depends on a picture or a model
        names = (name, *_VALUES, *(key for key, one in node.inputs.items() if is_link(one)))
        for key in dict.fromkeys(names):
            found = self._resolved(node.inputs.get(key), name, text, depth + 1)
            if found is not None:
                return found
        wanted = str if text else str | int | float
        left = [one for one in node.inputs.values() if isinstance(one, wanted) and not isinstance(one, bool)]
        return self._resolved(left[0], name, text) if len(left) == 1 else None

    def _joined(self, node: Node, depth: int) -> str | None:
        """Of nodes that put texts together."""
        if not any(word in node.kind.lower() for word in ("concat", "join", "combine")):
            return None
        parts = [
            self._resolved(value, name, True, depth + 1)
            for name, value in node.inputs.items()
            if name not in ("delimiter", "separator", "linebreak_addition", "clean_whitespace")
        ]
        delimiter = node.inputs.get("delimiter", node.inputs.get("separator", " "))
        return (delimiter if isinstance(delimiter, str) else " ").join(part for part in parts if part)[:MAX_TEXT]


def from_prompt(data: Any) -> Graph | None:
    """From what the API is sent: {"3": {"class_type": "KSampler", "inputs": {…}}, …}."""
    if not isinstance(data, dict) or len(data) > MAX_NODES:
        return None
    nodes = {
        str(id): Node(str(id), node["class_type"], _inputs(node.get("inputs")))
        for id, node in data.items()
        if isinstance(node, dict) and isinstance(node.get("class_type"), str)
    }
    return Graph(nodes) if nodes else None


def _inputs(value: Any) -> dict[str, Any]:
    return dict(islice(value.items(), MAX_INPUTS)) if isinstance(value, dict) else {}


def from_workflow(data: Any) -> Graph | None:
    """From what the editor saves; of nodes whose widgets are known, their values too."""
    if not isinstance(data, dict) or not isinstance(data.get("nodes"), list) or len(data["nodes"]) > MAX_NODES:
        return None
    listed = data.get("links")
    sources = {
        one[0]: [str(one[1]), one[2]]
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, list) and len(one) >= 5 and type(one[0]) is int and type(one[2]) is int
    }
    nodes: dict[str, Node] = {}
    for node in data["nodes"]:
        if isinstance(node, dict) and isinstance(node.get("type"), str) and node.get("mode") not in (_MUTED, _BYPASSED):
            id = str(node.get("id"))
            nodes[id] = Node(id, node["type"], _editor_inputs(node, sources))
    return Graph(nodes) if nodes else None


def _editor_inputs(node: Mapping[str, Any], sources: Mapping[int, list[Any]]) -> dict[str, Any]:
    values = node.get("widgets_values")
    inputs = _inputs(values)
    if isinstance(values, list):
        inputs = {name: value for name, value in zip(_WIDGETS.get(node["type"], ()), values, strict=False) if name}
    listed = node.get("inputs")
    for number, one in enumerate(listed[:MAX_INPUTS] if isinstance(listed, list) else []):
        if isinstance(one, dict) and isinstance(one.get("link"), int) and one["link"] in sources:
            inputs[str(one.get("name") or f"input{number}")] = sources[one["link"]]
    return inputs
