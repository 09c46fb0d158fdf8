"""The command line: A1111's flags by their names, each with what it does here. Standard library only, so that
launch.py can read it before anything is installed. Knows nothing of what the flags set in motion."""

import argparse
import difflib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

Kind = Literal["switch", "text", "path", "whole", "port", "words", "texts"]

DEFAULT_PORT = 7860
HARMLESS = ("--use-cpu", "--device-id")  # words, whose values may be shown to anybody


class FlagError(ValueError):
    """A command line that cannot be obeyed; the message is one sentence for the user."""


@dataclass(frozen=True)
class Flag:
    """One flag. `note` is empty for a flag that works; otherwise it tells, once at start, why this one does nothing."""

    name: str
    does: str
    kind: Kind = "switch"
    default: object = None
    choices: tuple[str, ...] = ()
    note: str = ""

    @property
    def dest(self) -> str:
        return self.name.removeprefix("--").replace("-", "_")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Every flag by A1111's attribute name (`--data-dir` is `data_dir`). Raises `FlagError` with one sentence."""
    flags, unknown = _parser().parse_known_args(list(argv))
    if unknown:
        raise FlagError(_unknown_words(unknown[0]))
    return flags


def parse_among(argv: Sequence[str]) -> argparse.Namespace:
    """The same where words of another program stand between our flags: they are passed over."""
    return _parser().parse_known_args([word for word in argv if word not in ("-h", "--help")])[0]


def notes(argv: Sequence[str]) -> list[str]:
    """One sentence for each flag on this command line that is accepted and does nothing."""
    given = vars(_parser(only_given=True).parse_known_args(list(argv))[0])
    return [f"{flag.name}: {flag.note}" for flag in FLAGS if flag.note and flag.dest in given]


def words(argv: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The command line with COMMANDLINE_ARGS (A1111's webui-user scripts) in front, so that what is typed wins."""
    text = environ.get("COMMANDLINE_ARGS", "")
    if sys.platform != "win32":
        return [*shlex.split(text), *argv]
    # Backslashes are path separators there, not escapes.
    return [*(word.strip("\"'") for word in shlex.split(text, posix=False)), *argv]


def described(flags: argparse.Namespace) -> list[str]:
    """The flags that differ from their defaults, as they are typed. What may name a folder, a person or a secret is
    shown as `…`: this is for reports that people paste into public places."""
    words = []
    for flag in FLAGS:
        value = getattr(flags, flag.dest, flag.default)
        if value == flag.default or value is False or value is None:
            continue
        if flag.kind == "switch":
            words.append(flag.name)
            continue
        values = [str(part) for part in value] if isinstance(value, list | tuple) else [str(value)]
        open_kind = flag.kind in ("whole", "port") or flag.choices or flag.name in HARMLESS
        told = [part if open_kind and re.fullmatch(r"[\w,.-]{1,24}", part) else "…" for part in values]
        words.append(" ".join([flag.name, *told]))
    return words


def help_text() -> str:
    """All flags by group, for `python launch.py --help`."""
    return _parser().format_help()


def host_of(flags: argparse.Namespace) -> str:
    """The address to listen on: this machine only, unless `--listen` or `--server-name` says more."""
    return str(flags.server_name or ("0.0.0.0" if flags.listen else "127.0.0.1"))


# argparse's words, said to someone who does not program
_PLAINER = {
    "expected one argument": "it needs a value after it",
    "expected at least one argument": "it needs at least one value after it",
    "ignored explicit argument": "it takes no value, got",
    "invalid choice": "there is no choice",
    "(choose from": "(there are",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        plain = message.removeprefix("argument ")
        for theirs, ours in _PLAINER.items():
            plain = plain.replace(theirs, ours)
        raise FlagError(plain)


def _parser(only_given: bool = False) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python launch.py",
        usage="python launch.py [install | test [pytest arguments] | bench [its options]] [flags]",
        description="Starts Easel. Flags may also stand in the environment variable COMMANDLINE_ARGS.",
        epilog="`bench` times this machine (see `bench --help`). TORCH_INDEX_URL in the environment names the package "
        "index of another torch (CPU, ROCm, …)",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=120),
        allow_abbrev=False,
    )
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag, only_given)
    return parser


def _add(group: argparse._ArgumentGroup, flag: Flag, only_given: bool) -> None:
    default = argparse.SUPPRESS if only_given else flag.default
    text = f"{flag.does} (does nothing: {flag.note})" if flag.note else flag.does
    text = text.replace("%", "%%")
    match flag.kind:
        case "switch":
            off = argparse.SUPPRESS if only_given else False
            group.add_argument(flag.name, dest=flag.dest, action="store_true", default=off, help=text)
        case "words":
            group.add_argument(flag.name, nargs="+", type=str.lower, default=default, metavar="NAME", help=text)
        case "texts":
            group.add_argument(flag.name, action="append", type=_text, default=default, metavar="TEXT", help=text)
        case "whole":
            group.add_argument(flag.name, type=_whole, default=default, metavar="N", help=text)
        case "port":
            group.add_argument(flag.name, type=_port, default=default, metavar="N", help=text)
        case "path":
            group.add_argument(flag.name, type=_text, default=default, metavar="PATH", help=text)
        case "text" if flag.choices:
            spelled = {choice.lower(): choice for choice in flag.choices}
            group.add_argument(
                flag.name,
                type=lambda word: spelled.get(word.lower(), word),
                choices=flag.choices,
                default=default,
                help=text,
            )
        case "text":
            group.add_argument(flag.name, default=default, metavar="TEXT", help=text)


def _text(word: str) -> str:
    if not word.strip() or "\0" in word:
        raise argparse.ArgumentTypeError("it needs a value, and got an empty one")
    return word


def _whole(word: str) -> int:
    if not word.isascii() or not word.isdigit() or len(word) > 9:
        raise argparse.ArgumentTypeError(f"it needs a whole number, got {word!r}")
    return int(word)


def _port(word: str) -> int:
    port = _whole(word)
    if 0 < port < 1024:
        raise argparse.ArgumentTypeError(f"ports below 1024 belong to the system; choose 1024 to 65535, not {port}")
    if port > 65535:
        raise argparse.ArgumentTypeError(f"a port is at most 65535, got {port}")
    return port


def _unknown_words(word: str) -> str:
    name = word.split("=", 1)[0]
    if not name.startswith("-"):
        return (
            f"{word!r} belongs to no flag; commands are `install`, `test` and `bench`, flags begin with -- (see --help)"
        )
    near = difflib.get_close_matches(name, [flag.name for flag in FLAGS], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "--help lists all flags"
    return f"there is no flag {name}; {hint}"


_DOWNLOADS = "nothing is ever downloaded unasked"
_PICKLES = "code inside model files never runs, and no flag changes that"
_TUNNEL = "no tunnel is opened; use --listen behind a tunnel or proxy of yours"
_EXTRAS = "that model is not built in yet"
_CONSOLE = "the console shows no progress bars; the page has one"
_EDITOR = "Gradio has one picture editor now"
_QUEUE = "every request goes through the durable queue"

GROUPS: dict[str, tuple[Flag, ...]] = {
    "Where it listens": (
        Flag("--listen", "answer the whole network; without --gradio-auth visitors need the printed link"),
        Flag("--port", f"the port; without it {DEFAULT_PORT} or the next free one", "port"),
        Flag("--server-name", "the address to listen on, e.g. 192.168.1.5 or ::1", "text"),
        Flag("--tls-keyfile", "private key (PEM); with --tls-certfile the page is served over https", "path"),
        Flag("--tls-certfile", "certificate (PEM)", "path"),
        Flag("--disable-tls-verify", "accept self-signed certificates", note="nothing here checks our own certificate"),
        Flag("--timeout-keep-alive", "seconds that an idle connection stays open", "whole", 30),
        Flag("--api", "serve the HTTP API", note="the HTTP API is always on"),
        Flag("--nowebui", "serve the HTTP API only, no page"),
        Flag("--gradio-auth", "user:password,user2:password2 – who may come in", "text"),
        Flag("--gradio-auth-path", "a file of such pairs", "path"),
        Flag("--api-auth", "more such pairs; they open page and API alike", "text"),
        Flag("--api-log", "log every API request"),
        Flag("--cors-allow-origins", "origins that may call the API", "text", note="other sites are refused for now"),
        Flag("--cors-allow-origins-regex", "the same as a pattern", "text", note="other sites are refused for now"),
        Flag("--enable-downloads", "let visitors of other machines start downloads of models; from this one they may"),
        Flag("--subpath", "serve below this path", "text", note="not built yet"),
        Flag("--add-stop-route", "a route that stops the server", note="stop it with Ctrl-C or SIGTERM"),
        Flag("--api-server-stop", "routes that stop or restart the server", note="stop it with Ctrl-C or SIGTERM"),
        Flag("--share", "a public link through Gradio's servers", note=_TUNNEL),
        Flag("--ngrok", "a public link through ngrok", "text", note=_TUNNEL),
        Flag("--ngrok-region", "ngrok's region", "text", "", note=_TUNNEL),
        Flag("--ngrok-options", "ngrok's options as JSON", "text", {}, note=_TUNNEL),
    ),
    "Where things are": (
        Flag("--data-dir", "folder of settings, outputs and database; made if missing", "path"),
        Flag("--models-dir", "folder with Stable-diffusion/, VAE/, Lora/, …; made if missing", "path"),
        Flag("--ckpt-dir", "one more folder with checkpoints", "path"),
        Flag("--ckpt", "the checkpoint to begin with", "path"),
        Flag(
            "--model-tree", "models of another program, in place: its folder, a .yaml of ComfyUI, huggingface", "texts"
        ),
        Flag("--forge-ref-a1111-home", "the same, by Forge's name: the folder of an A1111", "path"),
        Flag("--controlnet-dir", "one more folder with ControlNets", "path"),
        Flag("--text-encoder-dir", "one more folder with text encoders", "path"),
        Flag("--ui-settings-file", "the settings' file instead of config.json in the data folder", "path"),
        Flag("--vae-dir", "one more folder with VAEs", "path"),
        Flag("--vae-path", "the VAE to use", "path"),
        Flag("--embeddings-dir", "folder with embeddings", "path"),
        Flag("--hypernetwork-dir", "folder with hypernetworks", "path"),
        Flag("--lora-dir", "folder with LoRAs", "path"),
        Flag("--lyco-dir-backcompat", "folder with LyCORIS files", "path"),
        Flag("--textual-inversion-templates-dir", "templates for training", "path", note="not built in yet"),
        Flag("--styles-file", "file(s) with prompt styles", "texts"),
        Flag("--ui-config-file", "file with the page's defaults", "path", note="not built yet"),
        Flag("--localizations-dir", "folder with translations", "path", note="translations come with the program"),
        Flag("--config", "one model config for all", "path", note="put NAME.yaml beside NAME.safetensors"),
        Flag("--codeformer-models-path", "folder of CodeFormer", "path", note=_EXTRAS),
        Flag("--gfpgan-models-path", "folder of GFPGAN", "path", note=_EXTRAS),
        Flag("--gfpgan-dir", "folder of GFPGAN's code", "path", note=_EXTRAS),
        Flag("--gfpgan-model", "GFPGAN's file", "path", note=_EXTRAS),
        Flag("--unload-gfpgan", "drop GFPGAN after use", note=_EXTRAS),
        Flag("--esrgan-models-path", "folder of ESRGAN upscalers", "path"),
        Flag("--bsrgan-models-path", "folder of BSRGAN", "path", note=_EXTRAS),
        Flag("--realesrgan-models-path", "folder of RealESRGAN upscalers", "path"),
        Flag("--dat-models-path", "folder of DAT", "path", note=_EXTRAS),
        Flag("--ldsr-models-path", "folder of LDSR", "path", note=_EXTRAS),
        Flag("--scunet-models-path", "folder of ScuNET", "path", note=_EXTRAS),
        Flag("--swinir-models-path", "folder of SwinIR", "path", note=_EXTRAS),
        Flag("--clip-models-path", "folder of CLIP for captions", "path", note=_EXTRAS),
        Flag("--deepdanbooru", "captions by DeepDanbooru", note=_EXTRAS),
        Flag("--no-hashing", "do not hash checkpoints"),
        Flag("--filenames-max-length", "longest file name", "whole", 128, note="the file system sets the limit"),
        Flag("--unix-filenames-sanitization", "allow what Windows forbids in names", note="names stay portable"),
    ),
    "How it computes": (
        Flag("--use-cpu", "parts that compute on the CPU: all, sd, …", "words", ()),
        Flag("--device-id", "which GPU, from 0", "text"),
        Flag("--no-half", "32-bit floats everywhere"),
        Flag("--no-half-vae", "32-bit floats in the VAE"),
        Flag(
            "--precision",
            "autocast: what suits the device; full: like --no-half; half: 16-bit floats in every part",
            "text",
            "autocast",
            choices=("full", "half", "autocast"),
        ),
        Flag("--opt-channelslast", "channels-last memory layout on the GPU"),
        Flag("--upcast-sampling", "16-bit weights; 32-bit floats where 16 bits lose most"),
        Flag("--medvram", "move parts of the model in and out of the GPU; found out without it where needed"),
        Flag("--medvram-sdxl", "the same for SDXL"),
        Flag("--lowvram", "move single layers in and out of the GPU; found out without it where needed"),
        Flag("--lowram", "load weights straight to the GPU", note="weights are mapped from the file, always"),
        Flag("--disable-model-loading-ram-optimization", "load weights plainly", note="weights are mapped, always"),
        Flag("--skip-load-model-at-start", "load the checkpoint when the first picture is asked for"),
        Flag("--xformers", "attention by xformers, if it is installed and the device is an NVIDIA card"),
        Flag("--force-enable-xformers", "the same"),
        Flag("--xformers-flash-attention", "flash attention by xformers", note="xformers chooses its kernel itself"),
        Flag("--reinstall-xformers", "install xformers again", note="it is yours to install: pip install xformers"),
        Flag("--opt-sdp-attention", "attention by torch (sdp), the default wherever torch has fast kernels"),
        Flag("--opt-sdp-no-mem-attention", "the same without the kernel whose results vary from run to run"),
        Flag("--opt-sub-quad-attention", "attention in slices, which takes less memory (sub-quadratic)"),
        Flag("--sub-quad-q-chunk-size", "its slices of queries: how many rows", "whole", 1024),
        Flag("--sub-quad-kv-chunk-size", "its slices of keys; without it the square root of their number", "whole"),
        Flag("--sub-quad-chunk-threshold", "percent of the device's memory, above which it also slices keys", "whole"),
        Flag("--opt-split-attention", "attention in slices: here the same as --opt-sub-quad-attention"),
        Flag("--opt-split-attention-v1", "the same"),
        Flag("--opt-split-attention-invokeai", "the same"),
        Flag("--disable-opt-split-attention", "attention computed plainly, all at once"),
        Flag("--always-batch-cond-uncond", "prompt and negative in one batch", note="they are, always"),
        Flag("--disable-nan-check", "keep pictures of invalid numbers", note="a broken picture is always reported"),
        Flag("--use-ipex", "Intel's extension for torch", note="Intel GPUs are not used yet"),
    ),
    "The page and the console": (
        Flag("--autolaunch", "open the browser even where no screen was found"),
        Flag("--no-browser", "do not open the browser"),
        Flag("--loglevel", "how much is logged", "text", "INFO", ("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG")),
        Flag("--theme", "light or dark", "text", note="the page follows the system, and has a button"),
        Flag("--max-batch-count", "largest batch count on the page", "whole", 16, note="not built yet"),
        Flag("--use-textbox-seed", "seed as text", note="the seed is typed as text anyway"),
        Flag("--hide-ui-dir-config", "hide folder settings", note="folders cannot be set from the page"),
        Flag("--freeze-settings", "no setting can be changed", note="not built yet"),
        Flag("--freeze-settings-in-sections", "none of these sections", "text", note="not built yet"),
        Flag("--freeze-specific-settings", "none of these settings", "text", note="not built yet"),
        Flag("--disable-console-progressbars", "no progress bars", note=_CONSOLE),
        Flag("--no-progressbar-hiding", "keep the progress bar", note=_CONSOLE),
        Flag("--enable-console-prompts", "print prompts", note="prompts stay out of the log"),
        Flag("--no-prompt-history", "write no params.txt, which Paste reads when the prompt is empty"),
        Flag("--show-negative-prompt", "show the negative prompt", note="it is always shown"),
        Flag("--ui-debug-mode", "the page without a model", note="use --skip-load-model-at-start"),
        Flag("--gradio-debug", "Gradio's debug mode", note="use --loglevel DEBUG"),
        Flag("--gradio-img2img-tool", "picture editor", "text", note=_EDITOR),
        Flag("--gradio-inpaint-tool", "mask editor", "text", note=_EDITOR),
        Flag("--gradio-allowed-path", "folders the page may serve", "texts", note="pictures are served by id only"),
        Flag("--gradio-queue", "Gradio's queue", note=_QUEUE),
        Flag("--no-gradio-queue", "not Gradio's queue", note=_QUEUE),
        Flag("--allow-code", "run Python from the page", note="code from the page never runs"),
        Flag("--disable-safe-unpickle", "load any pickle", note=_PICKLES),
        Flag("--enable-insecure-extension-access", "extensions from outside", note="never from another machine"),
        Flag("--disable-all-extensions", "start without extensions", note="extensions are not built in yet"),
        Flag("--disable-extra-extensions", "without the user's extensions", note="extensions are not built in yet"),
    ),
    "Set-up": (
        Flag("--no-venv", "install into the running Python; a torch that is there and new enough is kept"),
        Flag("--skip-install", "install nothing, only start"),
        Flag("--skip-prepare-environment", "the same"),
        Flag("--skip-python-version-check", "try a Python that was never tested"),
        Flag("--reinstall-torch", "install torch again"),
        Flag("--skip-torch-cuda-test", "start without a GPU", note="a GPU is never required"),
        Flag("--skip-version-check", "do not compare versions", note="versions are pinned, and checked by set-up"),
        Flag("--update-check", "look for a new version", note="updates are yours to fetch: git pull"),
        Flag("--update-all-extensions", "update extensions at start", note="updates are yours to fetch: git pull"),
        Flag("--do-not-download-clip", "no CLIP download", note=_DOWNLOADS),
        Flag("--no-download-sd-model", "no checkpoint download", note=_DOWNLOADS),
        Flag("--dump-sysinfo", "write the system information into the data folder, and end"),
        Flag("--log-startup", "time the start", note="use --loglevel DEBUG"),
        Flag("--test-server", "start for tests", note="the server is always fit for tests"),
        Flag("--administrator", "allow running as root", note="it is allowed, though not a good idea"),
        Flag("--f", "nothing; notebooks pass it", note="notebooks pass it, and it means nothing"),
    ),
}
FLAGS: tuple[Flag, ...] = tuple(flag for group in GROUPS.values() for flag in group)
