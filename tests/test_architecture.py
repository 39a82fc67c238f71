import ast
import re
import sys

from tests import ROOT

LIBRARY_FILES = sorted((ROOT / "nvae_tf").rglob("*.py"))
COMMANDS = ("configs", "export", "train")
COMMAND_FILES = sorted(file for name in COMMANDS for file in (ROOT / name).rglob("*.py"))
ALL_FILES = LIBRARY_FILES + COMMAND_FILES

# The parts of the library in their order: each may import those that stand before it, and none that stands after it.
ORDER = """
config data_sets errors schemas files presets latent_plan progress replicas
layers distributions flows objective optimization
models data runs published generation evaluation reports training serving command_line
""".split()
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


def library_file(part):
    return ROOT / "nvae_tf" / f"{part}.py"


def within(dotted, packages):
    return any(dotted == package or dotted.startswith(package + ".") for package in packages)


def top_folder(file):
    return file.relative_to(ROOT).parts[0]


def forbidden(files, packages, at_top_only=False):
    """Returns a line for each import of one of the packages by one of the files."""
    pairs = [(file, name) for file in files for name in imports(file, at_top_only)]
    return [f"{relative(file)}: {name}" for file, name in pairs if within(name, packages)]


def test_each_part_of_the_library_imports_only_what_stands_before_it():
    parts = {library_part(dotted_name(file)) for file in LIBRARY_FILES} - {""}
    assert parts == set(ORDER) and {top_folder(file) for file in COMMAND_FILES} == set(COMMANDS)
    wrong = []
    for file in LIBRARY_FILES:
        here = library_part(dotted_name(file))
        if here:  # nvae_tf/__init__.py hands out names of every part
            allowed = ORDER[: ORDER.index(here) + 1]
            names = [name for name in imports(file) if within(name, ["nvae_tf"])]
            wrong += [f"{relative(file)}: {name}" for name in names if library_part(name) not in allowed]
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
    allowed = sys.stdlib_module_names | {"nvae_tf.config", "nvae_tf.data_sets"}
    names = {name for part in ("config", "data_sets", "latent_plan") for name in imports(library_file(part))}
    assert [name for name in names if not within(name, allowed)] == []


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
