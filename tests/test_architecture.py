import ast
import re
import sys

from tests import ROOT

LIBRARY_FILES = sorted((ROOT / "nvae_tf").rglob("*.py"))
COMMANDS = ("configs", "export", "train")
COMMAND_FILES = sorted(file for name in COMMANDS for file in (ROOT / name).rglob("*.py"))

# The parts of the library in their order: each may import those that stand before it, and none that stands after it.
ORDER = """
config data_sets errors files schemas presets latent_plan progress replicas
layers distributions flows objective optimization compression
models data runs sklearn published generation evaluation reports training serving
command_line
""".split()
# What Keras and TFP have documented already.
INHERITED = {"build", "call", "get_config", "from_config", "compute_output_shape", "compute_output_spec"}


def imports(file, at_top_only=False):
    """Yields the dotted name of everything that a file imports; `from a import b` gives `a.b`."""
    tree = ast.parse(file.read_text())
    for node in tree.body if at_top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def forbidden(files, packages, at_top_only=False):
    """Returns a line for each import of one of the packages by one of the files."""
    names = [(file.relative_to(ROOT).as_posix(), name) for file in files for name in imports(file, at_top_only)]
    return [f"{file}: {name}" for file, name in names if any(f"{name}.".startswith(f"{each}.") for each in packages)]


def test_each_part_of_the_library_imports_only_what_stands_before_it_and_settings_no_other_library():
    parts = {file.relative_to(ROOT / "nvae_tf").parts[0].removesuffix(".py") for file in LIBRARY_FILES}
    assert parts == {*ORDER, "__init__"}
    wrong = []
    for number, part in enumerate(ORDER):
        files = [file for file in LIBRARY_FILES if file.relative_to(ROOT / "nvae_tf").parts[0] in (part, f"{part}.py")]
        wrong += forbidden(files, [f"nvae_tf.{later}" for later in ORDER[number + 1 :]])
    assert not wrong
    names = {name for part in ("config", "data_sets", "latent_plan") for name in imports(ROOT / f"nvae_tf/{part}.py")}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names | {"nvae_tf"}


def test_the_library_knows_neither_commands_nor_flags_and_commands_not_each_other():
    outside = [*COMMANDS, "tests", "benchmarks", "examples", "absl.flags", "absl.app"]
    # command_line.py is what the scripts share: it defines their flags and runs them.
    assert set(forbidden(LIBRARY_FILES, outside)) == {f"nvae_tf/command_line.py: {name}" for name in outside[-2:]}
    assert not forbidden(LIBRARY_FILES + COMMAND_FILES, ["torch"], at_top_only=True)
    for here in COMMANDS:
        files = (ROOT / here).rglob("*.py")
        assert not forbidden(files, {"train", "export", "tests", "benchmarks", "examples"} - {here})


def test_every_public_method_of_the_library_has_a_docstring():
    """Functions and classes are checked by ruff, which does not know of methods that override a documented one."""
    bodies = [(file, ast.parse(file.read_text()).body) for file in LIBRARY_FILES]
    classes = [(file, node) for file, body in bodies for node in body if isinstance(node, ast.ClassDef)]
    methods = [
        (f"{file}:{method.lineno} {method.name}", method)
        for file, node in classes
        for method in node.body
        if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and not node.name.startswith("_")
    ]
    documented = INHERITED | {method.name for _, method in methods if ast.get_docstring(method)}
    assert [place for place, method in methods if method.name not in documented] == []


def test_the_links_of_the_pages_lead_to_files():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#\s]+)", page.read_text())]
    assert [link for page, link in links if "://" not in link and not (page.parent / link).exists()] == []
