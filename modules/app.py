"""The services of one process, made once by webui.py and handed to whoever needs them. Opens no port and knows no HTTP.
Making an App imports nothing heavy; the worker's thread does that, after start()."""

import logging
import os
from argparse import Namespace
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from modules.gallery.save import release
from modules.generation.infotext import MAX_INFOTEXT
from modules.generation.made import Picture
from modules.generation.plan import Plan, Texts
from modules.generation.progress import Progress, Watch
from modules.jobs.events import Event, EventBus
from modules.jobs.inputs import Inputs
from modules.jobs.keeper import Keeper
from modules.jobs.merges import Merges
from modules.jobs.queue import JobQueue, NoCheckpoint, checkpoint_in_use, choose_checkpoint
from modules.jobs.spool import Spool
from modules.jobs.store import JobStore
from modules.jobs.worker import Engine, LoadWatch, Worker
from modules.library.cache import FileCache
from modules.library.catalogue import Catalogue
from modules.library.checkpoints import PICKLED, Checkpoint, CheckpointLibrary
from modules.library.components import Looker
from modules.library.downloads.find import Hubs, hubs_from
from modules.library.downloads.homes import homes_from
from modules.library.downloads.reach import Reach
from modules.library.downloads.running import Downloads
from modules.library.downloads.tokens import Tokens
from modules.library.facts import KINDS, Kind
from modules.library.header import open_regular
from modules.library.network_tags import with_default_networks
from modules.library.networks import SUFFIXES as NETWORKS
from modules.library.networks import NetworkLibrary
from modules.library.previews import Previews
from modules.library.roots import roots_from
from modules.library.text_encoders import TextEncoderLibrary, UnknownTextEncoder
from modules.library.trees import trees_from, with_trees
from modules.library.upscalers import UpscalerLibrary
from modules.library.vaes import UnknownVae, VaeFile, VaeLibrary
from modules.library.watching import Watcher
from modules.prompt.attention import pieces
from modules.prompt.styles import Style, StylesError, read_styles
from modules.prompt.tokens import Tokenizer, count
from modules.prompt.wildcards import lines_in
from modules.runtime import imports
from modules.runtime.machine import DeviceFacts
from modules.runtime.paths import Paths, absolute
from modules.settings.schema import Settings
from modules.settings.store import SettingsStore

log = logging.getLogger(__name__)

Report = Callable[..., None]  # App.report


@dataclass(frozen=True)
class ModelStatus:
    state: str  # starting, loading, ready, failed
    text: str  # for people
    progress: float | None = None  # 0–1 of what is being read, while a checkpoint is


@dataclass(frozen=True)
class LoadedModel:
    """What is loaded, for the system info."""

    file: str  # its name, without folders
    family: str
    size: int  # bytes
    hash: str | None


class App:
    """`make_engine` is called in the worker's thread; tests pass another one, and servers of this machine (`hubs`,
    `local`) in the place of the hubs that models come from. `recent_problems`: the last warnings and errors of the
    log."""

    def __init__(
        self,
        paths: Paths,
        flags: Namespace,
        make_engine: Callable[[Namespace, Report], Engine] | None = None,
        recent_problems: Callable[[], list[str]] = list,
        hubs: Hubs | None = None,
        local: frozenset[str] = frozenset(),
    ):
        self.paths, self.flags, self.recent_problems = paths, flags, recent_problems
        self.device: DeviceFacts | None = None  # told by the engine, once torch is there
        self.loaded: LoadedModel | None = None
        self.memory_plan: Callable[[], dict[str, object]] = dict  # how the last run was fitted into memory
        self.events = EventBus()
        self.model_status = ModelStatus("starting", "starting")
        self.settings = SettingsStore(paths.config)
        self._logged = ""  # of the checkpoint in use
        files = FileCache(paths.cache / "models.db")
        named = [*(flags.model_tree or ()), *self.settings.current.model_trees]
        named += [flags.forge_ref_a1111_home] if flags.forge_ref_a1111_home else []
        trees = trees_from(named, os.environ, Looker(files).kinds)
        roots = with_trees(roots_from(paths, flags), trees, paths.models_dir)
        self.library = CheckpointLibrary([*roots["checkpoint"], *roots["unet"]], files)
        self.networks = NetworkLibrary({kind: roots[kind] for kind in NETWORKS}, paths.cache / "networks.db", files)
        self.upscalers = UpscalerLibrary.of(roots["upscaler"])
        self.vaes = VaeLibrary(roots["vae"], roots["checkpoint"], files)
        self.text_encoders = TextEncoderLibrary(roots["text_encoder"])
        self.models = Catalogue(self.library, self.vaes, self.networks, self.upscalers, roots, files)
        self.watcher = Watcher(self.models, self.events.heard, self.tell_models)
        self.previews = Previews(paths.cache / "previews")
        self.downloads = self._downloads(hubs or hubs_from(os.environ), local, homes_from(roots))
        self.store = JobStore(paths.database)
        self.spool = Spool(paths.data_dir / "data" / "unsaved")
        self.inputs = Inputs(paths.data_dir / "data" / "inputs")
        self.queue = JobQueue(self.store, self.library, self.events)
        self._last = None if flags.no_prompt_history else paths.data_dir / "params.txt"
        self.keeper = Keeper(self.queue, self.events, self.spool, self.inputs, paths.data_dir, self._last)
        self.worker = Worker(
            queue=self.queue,
            bus=self.events,
            library=self.library,
            keeper=self.keeper,
            engine_factory=partial(make_engine, flags, self.report) if make_engine else self._torch_engine,
            preload=self.current_checkpoint if not flags.skip_load_model_at_start else None,
            report=self.report,
            texts=self.texts,
        )
        self.merges = Merges(
            absolute(flags.ckpt_dir) if flags.ckpt_dir else roots["checkpoint"][0].path,
            self.library,
            self.vaes,
            self.events,
            self.worker.between_jobs,
            self.report,
            lambda: (self.model_status.state, self.model_status.text),
            partial(self.look_again, "checkpoint"),
        )

    def _torch_engine(self) -> Engine:
        return TorchEngine(self)

    def _downloads(self, hubs: Hubs, local: frozenset[str], homes: Mapping[str, Path]) -> Downloads:
        self.tokens = Tokens(lambda name: str(getattr(self.settings.current, name)), os.environ, hubs)
        return Downloads(
            Reach(self.tokens, local),
            lambda: homes,
            check_pickle=check_pickle,
            hubs=hubs,
            publish=lambda download: self.events.publish(Event("download", download.as_dict())),
            finished=self.look_again,
            twin=lambda sha256: next((one.path for one in self.library.list() if one.sha256 == sha256), None),
        )

    def look_again(self, kind: str) -> None:
        """A model of this kind has come; pages hear of it when the lists have it."""
        kinds = [one for one in KINDS if one == ("checkpoint" if kind == "unet" else kind)]
        self.models.refresh(*kinds)
        self.tell_models(kinds)

    @property
    def file_problems(self) -> list[str]:
        """What was wrong with the files of this data folder at the start."""
        return [*self.settings.problems, *self.store.problems]

    @property
    def problems(self) -> list[str]:
        """In sentences for the page."""
        try:
            _, of_checkpoint = self._in_use()
        except NoCheckpoint:  # the page sees that there is none
            of_checkpoint = ""
        return [*self.file_problems, *([of_checkpoint] if of_checkpoint else [])]

    def start(self) -> None:
        """Settles what the last run left behind, then lets the worker begin."""
        left = self.queue.recover()
        for job in left.failed:
            log.warning("job %s was given up: %s", job.id, job.error)
        for path in left.unwritten:
            release(path)
        self.keeper.forget_old()
        self.merges.clean()
        self.worker.start()
        self.watcher.start()

    def stop(self, timeout_s: float) -> bool:
        """Ends the worker after its present step and closes every event stream. False: the worker is still at it, its
        job is made again at the next start, and the process must end now."""
        self.watcher.stop()
        self.events.close()
        self.downloads.close()
        ended = self.worker.stop(timeout_s)
        if not ended and (run := self.queue.running):
            self.queue.put_back(run)
        self.store.close()
        return ended

    def report(self, state: str, text: str, progress: float | None = None) -> None:
        """What the model does now; the page shows it."""
        status = ModelStatus(state, text, None if progress is None else round(progress, 4))
        if status != self.model_status:
            self.model_status = status
            self.events.publish(Event("model", asdict(status)))

    def tell_models(self, kinds: Sequence[Kind]) -> None:
        """Every page hears that the lists of these kinds have changed."""
        self.events.publish(Event("models", {"kinds": list(kinds)}))

    def texts(self, settings: Settings) -> Texts:
        """What prompts may name, as it is now."""
        wildcards = lines_in(self.paths.data_dir / "wildcards")
        hypernetwork, lora = settings.sd_hypernetwork, settings.sd_lora
        weight = settings.extra_networks_default_multiplier
        return Texts(
            self.styles(),
            wildcards,
            settings.enable_prompt_comments,
            lambda prompt: with_default_networks(prompt, hypernetwork, lora, weight, self.networks),
        )

    def current_checkpoint(self) -> Checkpoint:
        """The one that a request without a checkpoint gets. Raises NoCheckpoint."""
        return self._in_use()[0]

    def _in_use(self) -> tuple[Checkpoint, str]:
        found, problem = checkpoint_in_use(self.library, self.settings.current.sd_model_checkpoint)
        if problem and problem != self._logged:
            log.warning("%s", problem)
        self._logged = problem
        return found, problem

    def use_checkpoint(self, wanted: str) -> Checkpoint:
        """Makes it the current one, and lets the worker load it when it has nothing else to do."""
        found = choose_checkpoint(self.library, wanted)
        self.settings.update({"sd_model_checkpoint": found.title})
        self.worker.reload()
        return found

    @property
    def styles_file(self) -> Path:
        """Where new styles are written: the first of --styles-file, else styles.csv in the data folder."""
        return absolute(self.flags.styles_file[0]) if self.flags.styles_file else self.paths.data_dir / "styles.csv"

    def styles(self) -> list[Style]:
        """The user's styles, of all their files; where two have one name, the later file's. Read anew each time: people
        edit these files. One that cannot be read is said in the log and left out."""
        found: dict[str, Style] = {}
        for file in [self.styles_file, *map(absolute, (self.flags.styles_file or [])[1:])]:
            try:
                found |= {style.name: style for style in read_styles(file)}
            except StylesError as error:
                log.warning("%s", error)
        return list(found.values())

    def last_infotext(self) -> str:
        """Of the last run, of whatever page; "" where there is none, or --no-prompt-history keeps none."""
        try:
            return self._last.read_text("utf-8", "replace")[:MAX_INFOTEXT] if self._last else ""
        except OSError:
            return ""

    def count_tokens(self, text: str) -> tuple[int, int]:
        """(tokens, room), as the counters show them."""
        settings = self.settings.current
        return count(pieces(text, settings.emphasis), self._tokenizer, settings.comma_padding_backtrack)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_folder(Path(__file__).parent / "families" / "configs" / "sd1" / "tokenizer")


def choose_vae(app: App, checkpoint: Checkpoint, settings: Settings) -> VaeFile | None:
    """Another VAE than the checkpoint's own, hashed; None: its own. Raises ValueError for one that is not there."""
    always = absolute(app.flags.vae_path) if app.flags.vae_path else None
    overrides = settings.sd_vae_overrides_per_model_preferences
    try:
        found = app.vaes.choose(checkpoint, settings.sd_vae, overrides, always)
    except UnknownVae as error:
        raise ValueError(str(error)) from error
    return app.vaes.hashed(found) if found else None


def check_pickle(path: Path) -> None:
    """Raises ValueError for a file of PyTorch's with anything in it but weights. Imports torch; nothing of the file is
    run."""
    from modules.families.formats import CONTAINERS
    from modules.families.networks.pickles import CONTAINERS as OF_NETWORKS
    from modules.runtime.pickles import load_pickle

    with os.fdopen(open_regular(path), "rb") as file:
        is_archive = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        load_pickle(file, (*CONTAINERS, *OF_NETWORKS), mapped=path if is_archive else None)


class TorchEngine:
    """The real machine room. Making one imports torch."""

    def __init__(self, app: App):
        report, flags = app.report, app.flags
        report("starting", "starting PyTorch")
        imports.scan_transformers_once()
        with imports.no_collections():
            from modules.families.holder import Keeping, ModelHolder, Wish
            from modules.families.levels import least_level
            from modules.families.networks.embeddings import EmbeddingStore
            from modules.families.networks.tensors import NetworkFiles
            from modules.families.residence import Residence
            from modules.families.vae_choice import VaeShelf
            from modules.generation.engine import generate
            from modules.generation.prompts import Conditionings
            from modules.generation.shelf import Loaded, Shelf
            from modules.postprocess.upscale import Upscalers
            from modules.runtime.device import placement_from
            from modules.runtime.memory import Memory
            from modules.runtime.torch_facts import device_facts

        placement = placement_from(flags)
        self._facts = partial(device_facts, placement)
        app.device = self._facts(app.settings.current.cross_attention_optimization)
        self._app = app

        def keeping() -> Keeping:
            settings = app.settings.current
            most = (
                settings.sd_checkpoints_limit + settings.sd_checkpoint_cache if settings.sd_checkpoints_limit else None
            )
            return Keeping(most, settings.sd_checkpoints_keep_in_cpu)

        residence = Residence(
            Memory(placement.device),
            partial(least_level, flags),
            make_room=lambda wanted, memory: self._holder.make_room(wanted, memory),
        )
        app.memory_plan = residence.facts

        def lenders() -> Iterator[Path]:
            """Whole checkpoints; last those of pickles, whose headers are read slowly."""
            usable = [checkpoint.path for checkpoint in app.library.usable()]
            yield from sorted(usable, key=lambda path: path.suffix.lower() in PICKLED)

        def wish(checkpoint: Checkpoint, settings: Settings) -> Wish:
            try:
                text_encoders = app.text_encoders.chosen(settings.sd_text_encoders)
            except UnknownTextEncoder as error:
                raise ValueError(str(error)) from error
            vae = choose_vae(app, checkpoint, settings) if settings.sd_vae not in ("Automatic", "None") else None
            fp8_full = settings.cache_fp16_weight
            return Wish(settings.fp8_storage, fp8_full, text_encoders, vae.path if vae else None)

        self._wish = wish
        self._holder = ModelHolder(
            placement, partial(report, "loading"), keeping, place=residence.home_for, lenders=lenders
        )
        self._vaes = VaeShelf()
        self._generate, self._library = generate, app.library
        enlargers = Upscalers(app.upscalers, placement.device)
        self._loaded: Callable[..., Any] = Loaded
        self._shelf: Callable[..., Any] = partial(
            Shelf,
            picture=app.inputs.get,
            upscaler=lambda name, settings: enlargers.under(settings).to_size(name),
            enlarger=lambda name, settings: enlargers.under(settings).by_scale(name),
            networks=app.networks,
            embeddings=EmbeddingStore(app.networks),
            vae_for=partial(choose_vae, app),
            vaes=self._vaes,
            residence=residence,
            conditionings=Conditionings(),
            network_files=NetworkFiles(),
        )

    def load(
        self, checkpoint: Checkpoint, watch: LoadWatch = lambda fraction: None, settings: Settings | None = None
    ) -> Any:
        """`settings`: of the job; None: those of now."""
        settings = settings or self._app.settings.current
        model = self._holder.get(checkpoint, watch, self._wish(checkpoint, settings))
        self._app.loaded = LoadedModel(checkpoint.path.name, model.family, checkpoint.size, checkpoint.shorthash)
        return model

    def unload(self) -> None:
        self._app.loaded = None
        self._vaes.clear()
        self._holder.unload()

    def generate(
        self, plan: Plan, checkpoint: Checkpoint, settings: Settings, watch: Watch
    ) -> Generator[Picture, None, None]:
        """`checkpoint`: the file that the request was accepted for; others of the request are found by name."""

        def identity(name: str) -> Checkpoint:
            return checkpoint if name == checkpoint.name else self._library.hashed(self._library.find(name))

        def load(name: str) -> Any:
            found = identity(name)
            told = lambda fraction: watch(Progress("loading", loaded=fraction))  # noqa: E731
            return self._loaded(self.load(found, told, settings), found)

        def at_hand(name: str) -> bool:
            found = identity(name)
            return self._holder.has(found, self._wish(found, settings))

        self._app.device = self._facts(settings.cross_attention_optimization)
        self._vaes.room = 1 + settings.sd_vae_checkpoint_cache
        return self._generate(plan, self._shelf(load, identity, at_hand=at_hand), settings, watch)
