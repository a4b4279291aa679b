"""Pages of the site that are written nowhere else, and links that work on GitHub and on the site.

mkdocs calls the two functions whose names begin with `on_`. README, CONTRIBUTING, CHANGELOG and the recipes
become pages as they are. Each folder of rlhf_jax becomes a page of its modules, which mkdocstrings fills from
their docstrings. Links are written for GitHub: those to a page lead to it, all others to the repository.
"""

import pathlib
import posixpath
import re

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "examples/recipes/README.md": "recipes.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "bench/README.md": "speed.md",
}
"""Files outside docs/ that are pages, and their names there."""
TOP = "steps"
"""Name of the page of the modules that stand in no folder."""


def modules(root: pathlib.Path = ROOT) -> dict[str, list[str]]:
    """Dotted names of all public modules that are not empty, by the page that shows them."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / "rlhf_jax").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if path.read_text().strip() and not any(part.startswith("_") for part in parts):
            is_folder = len(parts) > 1 and root.joinpath(*parts[:2]).is_dir()
            found.setdefault(parts[1] if is_folder else TOP, []).append(".".join(parts))
    return found


def moved(target: str, source: str, page: str, repository: str) -> str:
    """A link's target on the site, where `source` in the repository has become `page`."""
    path, hash_, anchor = target.partition("#")
    there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    if not path or "://" in path or not (ROOT / there).exists():
        return target  # mkdocs warns of what is nowhere
    if there in PAGES or there.startswith("docs/"):
        new = PAGES.get(there, there.removeprefix("docs/"))
        return posixpath.relpath(new, posixpath.dirname(page) or ".") + hash_ + anchor
    return (
        f"{repository}/{'tree' if (ROOT / there).is_dir() else 'blob'}/main/{there}{hash_}{anchor}"
    )


def on_files(files, config):
    """Adds the pages that are not in docs/."""
    from mkdocs.structure.files import File

    texts = {page: (ROOT / path).read_text() for path, page in PAGES.items()}
    for folder, names in modules().items():
        texts[f"api/{folder}.md"] = f"# {folder}\n\n" + "".join(f"::: {x}\n\n" for x in names)
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Moves the links of a page."""
    here = page.file.src_uri
    source = {new: path for path, new in PAGES.items()}.get(here, f"docs/{here}")
    move = lambda link: f"]({moved(link[1], source, here, config.repo_url.rstrip('/'))})"
    return re.sub(r"\]\(([^()\s]+)\)", move, markdown)
