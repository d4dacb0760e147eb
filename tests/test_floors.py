"""A file imports only floors below its own (ARCHITECTURE.md, "Floors"); siblings on one floor do not import each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "lm_jax"
FLOORS = {
    **{"core": 0, "nn": 1, "data": 1, "optim": 1, "models": 2, "objectives": 3, "infer": 3, "interop": 3},
    **{"evals": 4, "train": 5, "plan": 6, "study": 6, "serve": 6},
}
ROOF = 9
FILES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> tuple[str, int]:
    """(package below lm_jax, floor) of a module such as "lm_jax.nn.mlp"; the package itself (its version) is the ground."""
    parts = module.split(".")
    if len(parts) == 1:
        return "lm_jax", -1
    return parts[1], FLOORS.get(parts[1], ROOF)


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "lm_jax" else [node.module]
            found += names
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == "lm_jax"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    module = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    here, floor = room(module)
    for name in imports(path):
        there, other = room(name)
        allowed = other < floor or there == here or (floor == ROOF and other == ROOF)
        assert allowed or name == "lm_jax.__version__", f"{module} (floor {floor}) imports {name} (floor {other})"


def test_only_allowed_parts_of_nnx_are_used():
    """STYLE.md D1: modules are trees of parameters; nnx's own transforms and hidden state stay out."""
    allowed = {"Module", "Param", "Rngs", "List", "GraphDef", "split", "merge", "state", "initializers"}
    allowed |= {"set_graph_mode", "to_pure_dict", "to_flat_state"}
    used = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnx":
                used.add(node.attr)
    assert used <= allowed, used - allowed


def test_nothing_unpickles_or_evaluates():
    """What is read from disk is data: no pickle, no eval, no exec."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                assert not {"pickle", "marshal", "dill", "cloudpickle", "shelve"} & set(names), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
