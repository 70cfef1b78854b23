"""A backbone that brings its own code: only if the user allows it, and then to the end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))  # for base_encoders

from base_encoders import write_bert

from llm2comp.errors import UserError
from llm2comp.inference.load import load
from llm2comp.model.backbone import load_backbone
from llm2comp.recipe import Recipe, Supervised, load_recipe
from llm2comp.recipe_parts import Reading
from llm2comp.training import pipeline
from llm2comp.training.scoring import baseline_models

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from .tiny_config import TinyConfig


class TinyModel(LlamaModel):
    config_class = TinyConfig

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * self.config.factor
        return output


class TinyForCausalLM(LlamaForCausalLM):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.model = TinyModel(config)
        self.post_init()
"""
CONFIG = """
from transformers import LlamaConfig


class TinyConfig(LlamaConfig):
    model_type = "tiny_with_code"
    factor: float = 2.0
"""
TEXTS = ["Whales breathe air.", "Roman coins near the harbour"]


@pytest.fixture
def with_code(tiny_backbone: Path, tmp_path: Path) -> Path:
    """The tiny backbone as a class of its own, in a folder without a `modeling` for `AutoModel`."""
    folder = tmp_path / "with-code"
    folder.mkdir()
    for file in tiny_backbone.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "modeling_tiny.py").write_text(CODE)
    (folder / "tiny_config.py").write_text(CONFIG)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "tiny_with_code",
        "architectures": ["TinyForCausalLM"],
        "auto_map": {
            "AutoConfig": "tiny_config.TinyConfig",
            "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def allowed(recipe: Path, backbone: Path) -> Recipe:
    settings = yaml.safe_load(recipe.read_text())
    settings["backbone"] = {"name": str(backbone), "trust_remote_code": True}
    for stage in settings["stages"]:
        stage |= {"steps": 2}
    path = backbone.parent / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_recipe(path)


def test_code_does_not_run_unless_the_user_allows_it(with_code: Path, tmp_path: Path) -> None:
    for file in ("modeling_tiny.py", "tiny_config.py"):
        (with_code / file).write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(UserError, match=r"if you trust it, set backbone\.trust_remote_code=true"):
        load_backbone(str(with_code))
    assert not (tmp_path / "ran").exists()


def test_three_stages_and_the_saved_folder(
    with_code: Path, tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = allowed(tiny_recipe, with_code)
    folder = pipeline.train(recipe, tmp_path / "run")
    assert '"path/to/this/folder", trust_remote_code=True)' in (folder / "README.md").read_text()
    assert {"modeling_tiny.py", "tiny_config.py"} <= {file.name for file in folder.iterdir()}

    with pytest.raises(UserError, match=r"call llm2comp\.load\(\.\.\., trust_remote_code=True"):
        load(folder, "float32")
    ours = load(folder, "float32", trust_remote_code=True).encode(TEXTS)
    script = """
import sys
sys.modules["llm2comp"] = None
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", trust_remote_code=True)
assert type(model[0].model).__name__ == "TinyModel"
np.save(sys.argv[2], model.encode(sys.argv[3:]))
"""
    vectors = tmp_path / "vectors.npy"
    subprocess.run([sys.executable, "-c", script, str(folder), str(vectors), *TEXTS], check=True)
    np.testing.assert_allclose(np.load(vectors), ours, atol=1e-6)
    monkeypatch.setenv("LLM2COMP_TRUST_REMOTE_CODE", "1")
    np.testing.assert_allclose(load(folder, "float32").encode(TEXTS), ours, atol=1e-6)


@pytest.mark.parametrize("beside", ["reading", "teacher"])
def test_stage_3_runs_the_code_that_the_recipe_allows_beside_the_encoder(
    with_code: Path, tiny_recipe: Path, sentences: list[str], tmp_path: Path, beside: str
) -> None:
    """For the backbone that reads memory, and for the encoder to which a teacher is rotated."""
    recipe = allowed(tiny_recipe, with_code)
    first, _, last = recipe.stages
    assert isinstance(last, Supervised)
    source = last.data[0]
    if beside == "reading":
        last = last.model_copy(update={"reading": Reading()})
    else:
        teacher = write_bert(tmp_path / "teacher", sentences)  # of another dimension
        source = source.model_copy(update={"teacher": str(teacher)})
    last = last.model_copy(update={"data": [source]})
    recipe = recipe.model_copy(update={"stages": [first, last]})
    assert (pipeline.train(recipe, tmp_path / "run") / "modules.json").is_file()


def test_a_baseline_runs_the_code_that_the_recipe_allows(
    with_code: Path, tiny_recipe: Path
) -> None:
    recipe = allowed(tiny_recipe, with_code)
    recipe.evaluation.baselines = ["mean"]
    (load_baseline,) = baseline_models(recipe).values()
    assert load_baseline().encode(TEXTS).shape == (2, 32)
    recipe.backbone.trust_remote_code = False
    (load_baseline,) = baseline_models(recipe).values()
    with pytest.raises(UserError, match="trust_remote_code"):
        load_baseline()
