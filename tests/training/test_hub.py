"""What `push_to_hub` would upload. The Hub itself is away: making a repository and uploading a folder are recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rstar_trl.training.ppm_config import PPMConfig
from rstar_trl.training.ppm_trainer import PPMTrainer
from tests.training import test_ppm_trainer, test_sft_tree
from tests.training.toys import pair_rows

PUSH: dict[str, Any] = {"push_to_hub": True, "hub_model_id": "someone/model", "max_steps": 1, "save_strategy": "no"}


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Each upload as file name to content."""
    found: list[dict[str, str]] = []

    def create_repo(self: Any, name: str, **_: Any) -> Any:
        return type("Repo", (), {"repo_id": name})

    def upload_folder(self: Any, folder_path: str, **_: Any) -> None:
        files = [path for path in Path(folder_path).iterdir() if path.is_file()]
        found.append({path.name: path.read_text(errors="ignore") for path in files})

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", create_repo)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload_folder)
    return found


@pytest.mark.parametrize("kind", ["policy", "ppm"])
def test_pushing_uploads_model_tokenizer_and_card(
    kind: str, tiny_model_dir: str, tmp_path: Path, uploads: list[dict[str, str]]
) -> None:
    trainer: Any
    if kind == "policy":
        trainer = test_sft_tree.make(tiny_model_dir, tmp_path, **PUSH)
    else:
        trainer = test_ppm_trainer.make(PPMTrainer, tiny_model_dir, pair_rows(1), tmp_path, mode="tree", **PUSH)
        assert isinstance(trainer.args, PPMConfig)
    trainer.train()
    trainer.push_to_hub(dataset_name="someone/rows")
    files = uploads[-1]
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert 'model="someone/model"' in files["README.md"] and "[someone/rows]" in files["README.md"]
    assert "rstar-trl" in files["README.md"] and "## Results" in files["README.md"]
