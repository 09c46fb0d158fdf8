"""ComfyUI: the last sampler of its graph, and what leads there: prompts, model, LoRAs, size, a first pass."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modules.generation.foreign.comfyui_graph import (
    MAX_DEPTH,
    MAX_TEXT,
    Graph,
    Node,
    from_prompt,
    from_workflow,
    is_link,
)
from modules.generation.foreign.draft import Draft, Foreign, load, number, shown, stem, whole
from modules.generation.foreign.names import sampler_of, schedule_of

_PICTURES = frozenset(("samples", "latent", "latent_image", "pixels", "image", "images", "upscaled", "input", "*", ""))
_HARMLESS: tuple[str, ...] = (
    "Reroute",
    "VAEDecode",
    "VAEDecodeTiled",
    "VAEEncode",
    "VAEEncodeTiled",
    "PreviewImage",
    "SaveImage",
)
_HARMLESS += ("LatentFromBatch", "RepeatLatentBatch")


def read(items: Mapping[str, str]) -> Foreign | None:
    graph = from_prompt(load(items.get("prompt"))) or from_workflow(load(items.get("workflow")))
    return _Reader(graph).read() if graph else None


@dataclass(frozen=True)
class _Pass:
    """One sampler, its values resolved as far as they can be."""

    node: Node
    seed: Any = None
    steps: Any = None
    cfg: Any = None
    sampler: Any = None
    schedule: Any = None
    denoise: Any = None
    start: Any = None  # the step at which it begins, of KSamplerAdvanced
    model: Any = None  # links
    positive: Any = None
    negative: Any = None
    latent: Any = None


def is_sampler(node: Node) -> bool:
    inputs = node.inputs
    return "latent_image" in inputs and any(name in inputs for name in ("seed", "noise_seed", "noise"))


class _Reader:
    def __init__(self, graph: Graph):
        self.graph, self.draft = graph, Draft("ComfyUI")
        self._known: dict[tuple[str, int, str], str] = {}  # texts of nodes; empty while one is looked for

    def read(self) -> Foreign | None:
        last = self._last_sampler()
        if last is None:
            return None
        graph, draft = self.graph, self.draft
        passes, between, source = self._chain(last)
        first = passes[-1]
        draft.prompt = self._text(first.positive, "positive")
        draft.negative = self._text(first.negative, "negative")
        draft.set("Steps", first.steps, whole)
        draft.sampler(first.sampler, first.schedule)
        draft.set("CFG scale", first.cfg)
        draft.set("Seed", first.seed, whole)
        draft.fields["RNG"] = "CPU"
        self._model(first)
        self._source(source, first)
        if len(passes) > 1:
            self._second_pass(first, passes[-2], between)
        for extra in passes[:-2]:
            draft.note(f"another pass: {extra.node.kind}, {shown(extra.steps)} steps")
        others = sum(is_sampler(node) for node in graph.nodes.values()) - len(passes)
        if others > 0:
            draft.note(f"{others} other samplers of the graph")
        if graph.exhausted:
            draft.note("the graph is too large to be read whole")
        return draft.finish()

    def _last_sampler(self) -> Node | None:
        """The one that the saved picture comes from."""
        nodes = list(self.graph.nodes.values())
        outputs = [node for node in nodes if "filename_prefix" in node.inputs or "Save" in node.kind]
        outputs += [node for node in nodes if "Preview" in node.kind and "filename_prefix" not in node.inputs]
        for output in outputs[:20]:
            for _name, link in output.links():
                for node in self.graph.upstream(link, _PICTURES | {"model"}):
                    if is_sampler(node):
                        return node
                    self._note_if_unknown(node)
        samplers = [node for node in nodes if is_sampler(node)][:200]
        sources = {str(link[0]) for node in samplers for name, link in node.links() if name in _PICTURES}
        return next((node for node in reversed(samplers) if node.id not in sources), samplers[-1] if samplers else None)

    def _chain(self, last: Node) -> tuple[list[_Pass], list[Node], Node | None]:
        """All passes, the last one first; what is between the last two; and where the first one's latent comes from."""
        passes, between = [self._pass(last)], list[Node]()
        source: Node | None = None
        link = passes[0].latent
        while len(passes) < 10:
            before: _Pass | None = None
            for node in self.graph.upstream(link, _PICTURES):
                if is_sampler(node):
                    before = None if any(node.id == one.node.id for one in passes) else self._pass(node)
                    break
                source = node
                if len(passes) == 1:
                    between.append(node)
            if before is None:
                break
            passes.append(before)
            link, source = before.latent, None
        return passes, between, source

    def _pass(self, node: Node) -> _Pass:
        value, graph = self.graph.value, self.graph
        guider, noise = graph.node(node.inputs.get("guider")), graph.node(node.inputs.get("noise"))
        selected, sigmas = graph.node(node.inputs.get("sampler")), self._sigmas(node.inputs.get("sigmas"))
        where = guider or node
        sampler = value(node, "sampler_name")
        if selected is not None:
            kind = selected.kind.removeprefix("Sampler").removesuffix("Sampler")
            sampler = value(selected, "sampler_name") or {"DPMAdaptative": "dpm_adaptive"}.get(kind, kind)
        schedule = value(node, "scheduler")
        if sigmas is not None:
            schedule = value(sigmas, "scheduler") or sigmas.kind.removesuffix("Scheduler")
        return _Pass(
            node=node,
            seed=value(node, "seed", "noise_seed") if noise is None else value(noise, "noise_seed", "seed"),
            steps=value(sigmas or node, "steps"),
            cfg=value(where, "cfg") if guider is None or "cfg" in guider.inputs else 1,
            sampler=sampler,
            schedule=schedule,
            denoise=value(sigmas or node, "denoise"),
            start=value(node, "start_at_step"),
            model=where.inputs.get("model"),
            positive=where.inputs.get("positive", where.inputs.get("conditioning")),
            negative=where.inputs.get("negative"),
            latent=node.inputs.get("latent_image"),
        )

    def _sigmas(self, link: Any) -> Node | None:
        """The node that makes the noise levels, behind those that split or turn them."""
        return next(
            (node for node in self.graph.upstream(link, frozenset(("sigmas",))) if "steps" in node.inputs), None
        )

    def _source(self, source: Node | None, first: _Pass) -> None:
        """Where the first pass starts: an empty latent of some size, or a picture."""
        if source is not None and "width" in source.inputs and "image" not in source.inputs:
            width, height = self.graph.value(source, "width"), self.graph.value(source, "height")
            self.draft.size(width, height)
            if width is None or height is None:
                self.draft.note(f"the size: it is not in {source.kind[:80]}")
            return
        strength = self._strength(first)
        if source is not None and strength is not None:
            self.draft.set("Denoising strength", strength)
            self.draft.note("the init image: it is not in the picture")

    def _strength(self, one: _Pass) -> Any:
        try:
            if one.denoise is not None:
                return number(one.denoise)
            return round(1 - number(one.start) / max(1, number(one.steps)), 4) if one.start is not None else None
        except ValueError:
            return None

    # --- a second pass ---

    def _second_pass(self, first: _Pass, second: _Pass, between: list[Node]) -> None:
        scales = [node for node in between if "upscale" in node.kind.lower() or "scale" in node.kind.lower()]
        starts_late = second.start not in (None, 0)
        if not scales and starts_late and second.model != first.model:  # SDXL's base, then its refiner
            self.draft.set("Refiner", self._checkpoint(second.model), stem)
            self.draft.set("Refiner switch at", self._strength(second), lambda part: round(1 - float(part), 4))
            return
        draft = self.draft
        draft.set("Denoising strength", self._strength(second))
        self._enlargement(scales)
        draft.set("Hires steps", second.steps, whole)
        if (second.sampler, second.schedule) != (first.sampler, first.schedule):
            if sampler_of(str(second.sampler)) != sampler_of(str(first.sampler)):
                draft.sampler(second.sampler, prefix="Hires ")
            if schedule_of(str(second.schedule)) != schedule_of(str(first.schedule)):
                draft.sampler(None, second.schedule, prefix="Hires ")
        if second.cfg != first.cfg:
            draft.set("Hires CFG Scale", second.cfg)
        for name, lane, known, after in (
            ("Hires prompt", "positive", draft.prompt, second.positive),
            ("Hires negative prompt", "negative", draft.negative, second.negative),
        ):
            if (text := self._text(after, lane)) not in ("", known):
                draft.fields[name] = text
        if (model := self._checkpoint(second.model)) and model != self._checkpoint(first.model):
            draft.set("Hires checkpoint", model, stem)
        if second.seed not in (None, first.seed):
            draft.note(f"the seed of the second pass: {shown(second.seed)}; here it is the first one's")

    def _enlargement(self, scales: list[Node]) -> None:
        value, draft = self.graph.value, self.draft
        upscaler = "Latent" if any(node.kind.startswith("Latent") for node in scales) or not scales else "None"
        for node in scales:
            method = str(value(node, "upscale_method") or "")
            if node.kind.startswith("Latent"):
                upscaler = _LATENT.get(method, "Latent")
                if method not in _LATENT:
                    draft.note(f"{node.kind}: {method} (Latent is taken for it)")
            loader = self.graph.node(node.inputs.get("upscale_model"))
            if loader is not None:
                upscaler = stem(value(loader, "model_name") or "None")
            by = value(node, "scale_by", "upscale_by", "scale")
            width, height = value(node, "width"), value(node, "height")
            if by is not None:
                draft.set("Hires upscale", by)
            elif width is not None and height is not None:
                draft.set("Hires resize", f"{width}x{height}", str)
        if "Hires upscale" in draft.fields and "Hires resize" in draft.fields:
            del draft.fields["Hires upscale"]
        if not {"Hires upscale", "Hires resize"} & set(draft.fields):
            draft.fields["Hires upscale"] = 1 if not scales else 2
            if scales:
                draft.note(f"by how much {scales[0].kind} enlarges; 2 is taken for it")
        draft.fields["Hires upscaler"] = upscaler

    # --- the model, and what changes it ---

    def _model(self, first: _Pass) -> None:
        draft, value = self.draft, self.graph.value
        tags: list[tuple[Any, Any, Any]] = []
        for node in self.graph.upstream(first.model, frozenset(("model", "lora_stack", "optional_lora_stack"))):
            found = self._loras(node)
            tags += found
            if any(name in node.inputs for name in _MODEL):
                draft.set("Model", value(node, *_MODEL), stem)
                if (vae := value(node, "vae_name")) not in (None, "Baked VAE"):
                    draft.set("VAE", vae, stem)
            elif not found:
                self._note_if_unknown(node)
        for name, weight, text_weight in reversed(tags):  # as they are applied
            draft.lora(name, weight, text_weight)
        for node in self.graph.upstream(first.positive):
            if (layer := value(node, "stop_at_clip_layer", "clip_skip")) is not None:
                draft.set("Clip skip", layer, lambda number: abs(whole(number)))
                break
        for node in self.graph.nodes.values():
            if node.kind.startswith("VAEDecode") and (loader := self.graph.node(node.inputs.get("vae"))) is not None:
                draft.set("VAE", value(loader, "vae_name"), stem)

    def _checkpoint(self, model: Any) -> Any:
        for node in self.graph.upstream(model, frozenset(("model",))):
            if (name := self.graph.value(node, *_MODEL)) is not None:
                return name
        return None

    def _loras(self, node: Node) -> list[tuple[Any, Any, Any]]:
        """Name, weight of the model, weight of the text encoder; the last one first."""
        value, inputs = self.graph.value, node.inputs
        if "lora_name" in inputs:
            return [(value(node, "lora_name"), value(node, "strength_model") or 0, value(node, "strength_clip"))]
        found: list[tuple[Any, Any, Any]] = []
        for key, one in list(inputs.items())[:200]:
            if isinstance(one, dict) and "lora" in one and "strength" in one:  # rgthree's Power Lora Loader
                if one.get("on", True):
                    found.append((one["lora"], one["strength"], one.get("strengthTwo")))
            elif key.startswith(("lora_0", "lora_name_")) and isinstance(one, str) and one != "None":
                number = key.rsplit("_", 1)[-1]
                weight = value(node, f"strength_{number}", f"model_weight_{number}", f"lora_wt_{number}")
                found.append((one, 1 if weight is None else weight, value(node, f"clip_weight_{number}")))
        return found[::-1]

    # --- prompts ---

    def _text(self, link: Any, lane: str) -> str:
        return _literal_brackets(self._conditioning(link, lane, 0))

    def _conditioning(self, link: Any, lane: str, depth: int) -> str:
        node = self.graph.node(link)
        if node is None or depth > MAX_DEPTH or not self.graph.spend():
            return ""
        key = (node.id, link[1], lane)
        if key not in self._known:
            self._known[key] = ""
            self._known[key] = self._text_of(node, link[1], lane, depth)[:MAX_TEXT]
        return self._known[key]

    def _text_of(self, node: Node, slot: int, lane: str, depth: int) -> str:
        inputs, value = node.inputs, self.graph.value
        if isinstance(inputs.get(lane), str):  # loaders that hold both prompts
            return str(inputs[lane])
        if is_link(inputs.get("positive")) and is_link(inputs.get("negative")):  # changes both
            self._note_if_unknown(node)
            return self._conditioning(inputs["negative" if slot == 1 else "positive"], lane, depth + 1)
        if any(name in inputs for name in ("text", "text_g", "clip_l", "t5xxl", "prompt")):
            text = value(node, "text", "text_g", "t5xxl", "clip_l", "prompt", text=True) or ""
            other = value(node, "text_l", text=True)
            if "text_g" in inputs and other not in (None, "", text):
                self.draft.note(f"the text for the smaller encoder: {shown(other)}")
            return str(text)
        return "" if node.kind == "ConditioningZeroOut" else self._combined(node, lane, depth)

    def _combined(self, node: Node, lane: str, depth: int) -> str:
        joints = {"ConditioningCombine": " AND ", "ConditioningConcat": " BREAK "}
        links = [link for name, link in node.links() if name not in ("clip", "vae", "model", "control_net", "image")]
        if node.kind in joints:
            links = [link for name, link in sorted(node.links(), key=lambda one: one[0] == "conditioning_from")]
            texts = [self._conditioning(link, lane, depth + 1) for link in links]
            return joints[node.kind].join(text for text in texts if text)
        self._note_if_unknown(node)
        preferred = [node.inputs[name] for name in ("conditioning", "conditioning_to") if name in node.inputs]
        for link in [*preferred, *links][:1]:
            return self._conditioning(link, lane, depth + 1)
        return ""

    def _note_if_unknown(self, node: Node) -> None:
        if node.kind not in _HARMLESS and not is_sampler(node):
            self.draft.note(f"{node.kind[:80]}: what this node does")


_MODEL = ("ckpt_name", "unet_name", "base_ckpt_name", "model_name")
_LATENT = {
    "nearest-exact": "Latent (nearest-exact)",
    "bilinear": "Latent",
    "bicubic": "Latent (bicubic)",
    "nearest": "Latent (nearest)",
}


def _literal_brackets(text: str) -> str:
    """Brackets mean nothing to ComfyUI, and embeddings have a word before their name."""
    text = text.replace("\\[", "[").replace("\\]", "]").replace("[", "\\[").replace("]", "\\]")
    return text.replace("embedding:", "")
