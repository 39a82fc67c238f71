import ast
import re
import sys

from tests import ROOT

LIBRARY_FILES = sorted((ROOT / "nvae_tf").rglob("*.py"))
COMMANDS = ("configs", "export", "train")
COMMAND_FILES = sorted(file for name in COMMANDS for file in (ROOT / name).rglob("*.py"))
ALL_FILES = LIBRARY_FILES + COMMAND_FILES

SETTINGS = {"config", "latent_plan"}
BASICS = {"errors", "files", "progress", "schemas"}
# Which parts of the library each part may import, besides itself.
BELOW_MODELS = SETTINGS | {"replicas", "layers", "distributions", "flows", "objective", "optimization"}
ARROWS = {
    "config": {"presets"},
    "presets": SETTINGS | {"data", "files"},
    "command_line": SETTINGS | {"errors", "files", "presets", "training"},
    "latent_plan": {"config"},
    "layers": {"latent_plan", "replicas"},  # the plan's words for a cell: plain data
    "distributions": {"config", "layers"},  # of the layers only `fan_out`
    "flows": {"latent_plan", "layers"},
    "objective": SETTINGS | {"layers", "distributions", "replicas"},
    "optimization": {"config", "layers"},  # how many nodes they make of many tensors
    "models": BELOW_MODELS | {"errors", "progress"},  # a bar where a batch size is given
    "errors": set(),
    "replicas": set(),
    "files": {"errors", "schemas"},
    "schemas": set(),
    "progress": set(),
    "data": SETTINGS | BASICS,
    "training": BELOW_MODELS | BASICS | {"", "data", "models", "published", "evaluation", "generation", "reports"},
    "published": BELOW_MODELS | BASICS | {"presets", "data", "models", "training", "reports", "serving"},
    "evaluation": BELOW_MODELS | BASICS | {"data", "models", "training", "generation", "reports"},
    "generation": BELOW_MODELS | BASICS | {"data", "models", "training", "evaluation", "reports"},
    "reports": BELOW_MODELS | BASICS | {"", "presets", "data", "models", "training", "evaluation", "generation"},
    "serving": BELOW_MODELS | BASICS | {"data", "models", "training", "evaluation", "generation", "reports"},
}
# What Keras and TFP have documented already.
INHERITED = {"build", "call", "get_config", "from_config", "compute_output_shape", "compute_output_spec"}


def relative(file):
    return file.relative_to(ROOT).as_posix()


def dotted_name(file):
    """Returns the module's dotted name: `nvae_tf.layers.convolution`, `nvae_tf.layers` for an `__init__`."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file, at_top_only=False):
    """Yields the dotted name of everything that a file imports; `from a import b` gives `a.b`."""
    tree = ast.parse(file.read_text())
    for node in tree.body if at_top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{relative(file)}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def library_part(dotted):
    """Returns `layers` for `nvae_tf.layers.convolution`, the empty string for `nvae_tf` itself."""
    return dotted.split(".")[1] if "." in dotted else ""


def within(dotted, packages):
    return any(dotted == package or dotted.startswith(package + ".") for package in packages)


def top_folder(file):
    return file.relative_to(ROOT).parts[0]


def forbidden(files, packages, at_top_only=False):
    """Returns a line for each import of one of the packages by one of the files."""
    found = [(file, name) for file in files for name in imports(file, at_top_only)]
    return [f"{relative(file)}: {name}" for file, name in found if within(name, packages)]


def test_the_arrows_inside_the_library():
    assert {library_part(dotted_name(file)) for file in LIBRARY_FILES} >= set(ARROWS)
    assert {top_folder(file) for file in COMMAND_FILES} == set(COMMANDS)
    wrong = []
    for file in LIBRARY_FILES:
        here = library_part(dotted_name(file))
        if here:  # nvae_tf/__init__.py hands out names of every part
            allowed = ARROWS[here] | {here}
            found = [name for name in imports(file) if within(name, ["nvae_tf"])]
            wrong += [f"{relative(file)}: {name}" for name in found if library_part(name) not in allowed]
    assert not wrong


def test_the_library_knows_neither_commands_nor_flags_and_commands_not_each_other():
    outside = [*COMMANDS, "tests", "benchmarks", "examples", "absl.flags", "absl.app"]
    # command_line.py is what the scripts share: it runs them, and is given the flags.
    assert not [line for line in forbidden(LIBRARY_FILES, outside) if line != "nvae_tf/command_line.py: absl.app"]
    assert not forbidden(ALL_FILES, ["torch"], at_top_only=True)
    for here in COMMANDS:
        files = [file for file in COMMAND_FILES if top_folder(file) == here]
        assert not forbidden(files, {"train", "export", "tests", "benchmarks", "examples"} - {here})


def test_settings_import_the_standard_library_alone():
    allowed = sys.stdlib_module_names | {f"nvae_tf.{name}" for name in (*SETTINGS, "presets")}
    for name in SETTINGS:
        found = set(imports(ROOT / "nvae_tf" / f"{name}.py")) - {"nvae_tf.presets"}
        assert [module for module in found if not within(module, allowed)] == []


def test_every_public_method_of_the_library_has_a_docstring():
    """Functions and classes are checked by ruff, which does not know of methods that override a documented one."""
    classes = [
        (file, node)
        for file in LIBRARY_FILES
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]
    methods = [
        (f"{relative(file)}:{method.lineno} {method.name}", method)
        for file, node in classes
        for method in node.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
    ]
    documented = INHERITED | {method.name for _, method in methods if ast.get_docstring(method)}
    assert [place for place, method in methods if method.name not in documented] == []


def test_the_links_of_the_pages_lead_to_files():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    assert [link for page, link in links if "://" not in link and not (page.parent / link).exists()] == []
