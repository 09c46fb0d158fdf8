"""Styles on the page: the row where they are chosen and applied, and what the dialog that edits them does
(html/styles.html, js/styles.js)."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from threading import Lock
from typing import TYPE_CHECKING, Any

import gradio as gr

from modules.prompt.styles import Style, StylesError, apply_styles, read_styles, write_styles
from modules.web.choices import styles as names
from modules.web.filling import Wires, reply
from modules.web.form import Form, sentence
from modules.web.parameters import Fields
from modules.web.parts import EACH, QUICK, dropdown, icon_button, slot, wire_in, wire_out

if TYPE_CHECKING:
    from modules.app import App

MOST_CHARACTERS = 20_000  # of a name or a text


def styles_row(app: "App", tab: str) -> tuple[Fields, gr.Button]:
    """The fields, and the button that writes the chosen styles into the prompts."""
    with gr.Row(elem_classes=["styles"]):
        chosen = dropdown(
            "styles",
            f"{tab}_styles",
            names(app),
            [],
            multiselect=True,
            allow_custom_value=True,
            elem_classes=["inline"],
        )
        apply = icon_button("apply_styles", "apply", f"{tab}_style_apply")
        icon_button("edit_styles", "edit", f"{tab}_styles_edit_button")
    return {"styles": chosen}, apply


def bind_applying(app: "App", form: Form, wires: Wires, apply: gr.Button) -> None:
    boxes = [form.fields[name] for name in ("prompt", "negative_prompt", "styles")]

    def write_in(prompt: str, negative_prompt: str, chosen: list[str]) -> list[Any]:
        try:
            return [gr.skip(), *written_in(app.styles(), prompt, negative_prompt, chosen), []]
        except StylesError as error:
            return [reply([sentence(str(error))]), gr.skip(), gr.skip(), gr.skip()]

    apply.click(write_in, boxes, [wires.reply, *boxes], **QUICK)


def written_in(known: Sequence[Style], prompt: str, negative_prompt: str, chosen: Sequence[str]) -> tuple[str, str]:
    """Both prompts with the chosen styles; unknown ones are left out. Raises StylesError for what grows too long."""
    names = {style.name: style for style in known}
    styles = [names[name] for name in chosen if name in names]
    prompt = apply_styles(prompt, [style.prompt for style in styles])
    return prompt, apply_styles(negative_prompt, [style.negative_prompt for style in styles])


def styles_dialog(app: "App", forms: Sequence[Form]) -> None:
    """Once for all tabs. Its script sends what to do, and gets all styles as they are then."""
    slot("styles")
    wish, answer = wire_in("styles_wish"), wire_out("styles_answer")
    go = gr.Button("", elem_id="styles_go", elem_classes=["wire"])
    lists = [form.fields["styles"] for form in forms]
    go.click(_editor(app, len(lists)), [wish], [answer, *lists], **EACH)


def _editor(app: "App", lists: int) -> Callable[[str], list[Any]]:
    one_by_one = Lock()  # each reads the file, and writes it anew

    def edit(written: str) -> list[Any]:
        problems = []
        wish = json.loads(written)
        with one_by_one:
            try:
                change(app, wish)
            except (StylesError, OSError) as error:
                problems.append(sentence(str(error)))
            styles = app.styles()
        answer = reply(problems, styles=[asdict(style) for style in styles], number=wish["number"])
        return [answer, *[gr.update(choices=[style.name for style in styles])] * lists]

    return edit


def change(app: "App", wish: dict[str, Any]) -> None:
    """{"do": "list" | "save" | "delete", "number": a count, "name", "prompt", "negative_prompt"}. Raises StylesError or
    OSError."""
    if wish["do"] == "list":
        return
    style = Style(*(str(wish.get(key, ""))[:MOST_CHARACTERS] for key in ("name", "prompt", "negative_prompt")))
    if not style.name.strip():
        raise StylesError("a style needs a name; write one above its prompts")
    kept = {one.name: one for one in read_styles(app.styles_file)}
    if wish["do"] == "save":
        kept[style.name] = style
    elif kept.pop(style.name, None) is None:
        raise StylesError(f"{app.styles_file.name} has no style named {style.name!r}, so none was deleted")
    write_styles(app.styles_file, kept.values())
