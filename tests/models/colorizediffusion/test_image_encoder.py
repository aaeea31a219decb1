import pytest
import torch

from saishiki.models.beside_cpu_torch import import_beside_cpu_torch
from saishiki.models.colorizediffusion import ImageEncoderConfig
from saishiki.models.colorizediffusion.image_encoder import ImageEncoder

CONFIG = ImageEncoderConfig(image_size=28, patch_size=14, width=64, layers=2, head_width=32, embed_dim=48)


def random_encoder(config: ImageEncoderConfig = CONFIG) -> ImageEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageEncoder(config).eval().requires_grad_(False)


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def test_tokens_are_open_clips_class_and_patch_tokens_projected():
    """open_clip gives the class token projected, and the patches' before their projection."""
    encoder, x = random_encoder(), pixels(3, 3, 28, 28)
    theirs = import_beside_cpu_torch("open_clip.transformer").VisionTransformer(
        28, 14, width=64, layers=2, heads=2, mlp_ratio=4.0, output_dim=48, output_tokens=True
    )
    theirs.load_state_dict(encoder.visual["model"].state_dict())
    with torch.inference_mode():
        tokens = encoder(x)
        of_class, of_patches = theirs.eval()(x)
    assert tokens.shape == (3, 5, 48)
    torch.testing.assert_close(tokens[:, 0], of_class)
    torch.testing.assert_close(tokens[:, 1:], of_patches @ theirs.proj)
    lengths = tokens.norm(dim=-1)
    assert lengths.min() < 0.9 * lengths.max(), "tokens must not be normalised"


def test_heads_follow_from_their_width():
    x, wide = pixels(1, 3, 28, 28), random_encoder()
    narrow = random_encoder(ImageEncoderConfig(28, 14, 64, 2, 16, 48))
    narrow.load_state_dict(wide.state_dict())
    with torch.inference_mode():
        assert (wide(x) - narrow(x)).abs().max() > 1e-3


def test_keys_are_open_clips_below_visual_model():
    keys = random_encoder().state_dict().keys()
    assert all(key.startswith("visual.model.") for key in keys)
    assert {"visual.model.class_embedding", "visual.model.transformer.resblocks.1.attn.in_proj_weight"} <= keys


def test_export_has_one_attention_per_block_and_none_shares_a_tensor(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'saishiki[cpu]'")
    from saishiki.export.onnx_graph import trace
    from saishiki.runtime.signature import Signature, TensorSpec

    signature = Signature(
        inputs=(TensorSpec("pixels", "float32", ("batch", "3", "28", "28")),),
        outputs=(TensorSpec("tokens", "float32", ("batch", "5", "48")),),
        multiples={},
    )
    encoder, x = random_encoder(), pixels(3, 3, 28, 28)
    model = trace(encoder, signature, {"batch": 2})
    attentions = [node for node in model.graph if node.op_type == "Attention"]
    operands = [value.name for node in attentions for value in node.inputs]
    assert len(attentions) == CONFIG.layers
    assert len(operands) == len(set(operands)) == 3 * CONFIG.layers
    import onnx_ir

    onnx_ir.save(model, tmp_path / "encoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    (tokens,) = session.run(None, {"pixels": x.numpy()})
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(tokens), encoder(x), atol=1e-5, rtol=1e-4)
