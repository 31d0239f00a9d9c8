"""The families that PIA is tested with: one row for each, and for each row a test that proves it (tests/models)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pia.models.capability import MaskKind

TREE, CHAIN, PLAIN = "tree", "chain", "plain"
WINDOW: MaskKind = "window"
BY_TYPE: MaskKind = "by type"


@dataclass(frozen=True)
class Family:
    """A row of the table.

    Attributes:
        name: Transformers' `model_type`, with what matters of the configuration in brackets.
        architecture: class of the model.
        mode: what one forward verifies: "tree", "chain" or "plain" (nothing: one token at a time).
        masks: "one" for all layers, one with a "window", or one "by type" of layer.
        can_batch: rows of different lengths share forwards; else a batch is left to Transformers.
        note: what is adapted, or why it is no more.
    """

    name: str
    architecture: str
    mode: str = TREE
    masks: MaskKind = "one"
    can_batch: bool = True
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self)


_ONE_CHAIN = "its recurrent state cannot branch, so each step verifies one chain and what was accepted is fed again"
_FORGETS = "its layers forget their recurrent state when they are given several tokens at once"
_CLAMPS = "its recurrent layers clamp their time steps when they are given several tokens, and not for one"
_OWN = "modeling file of PIA's own, for checkpoints that `pia convert` has written"


def _stateful(name: str, architecture: str, mode: str, note: str) -> Family:
    return Family(name, architecture, mode=mode, can_batch=False, note=note)


ATTENTION: tuple[Family, ...] = (
    Family("llama", "LlamaForCausalLM"),
    Family("llama (llama3 rope)", "LlamaForCausalLM"),
    Family(
        "llama (dynamic rope)",
        "LlamaForCausalLM",
        can_batch=False,
        note="dynamic rope: one token at a time beyond its original length",
    ),
    Family("mistral", "MistralForCausalLM", masks=WINDOW),
    Family("mixtral", "MixtralForCausalLM"),
    Family("mixtral (window)", "MixtralForCausalLM", masks=WINDOW),
    Family("opt", "OPTForCausalLM"),
    Family("bloom", "BloomForCausalLM", note="ALiBi by position"),
    Family("gpt2", "GPT2LMHeadModel"),
    Family("gptj", "GPTJForCausalLM"),
    Family("qwen2", "Qwen2ForCausalLM"),
    Family("qwen2 (windows)", "Qwen2ForCausalLM", masks=BY_TYPE),
    Family("qwen2_moe", "Qwen2MoeForCausalLM"),
    Family("qwen3", "Qwen3ForCausalLM"),
    Family("qwen3_moe", "Qwen3MoeForCausalLM"),
    Family("gemma", "GemmaForCausalLM"),
    Family("gemma2", "Gemma2ForCausalLM", masks=BY_TYPE),
    Family("gemma3_text", "Gemma3ForCausalLM", masks=BY_TYPE),
    Family("gemma3n_text", "Gemma3nForCausalLM", masks=BY_TYPE),
    Family("gemma4_text", "Gemma4ForCausalLM", masks=BY_TYPE),
    Family("gemma4_unified_text", "Gemma4UnifiedForCausalLM", masks=BY_TYPE),
    Family("vaultgemma", "VaultGemmaForCausalLM", masks=BY_TYPE),
    Family("gpt_neox", "GPTNeoXForCausalLM"),
    Family("gpt_neox_japanese", "GPTNeoXJapaneseForCausalLM"),
    Family("gpt_bigcode", "GPTBigCodeForCausalLM"),
    Family("gpt_neo", "GPTNeoForCausalLM", note="local windows by position"),
    Family("codegen", "CodeGenForCausalLM"),
    Family("xglm", "XGLMForCausalLM"),
    Family("falcon", "FalconForCausalLM"),
    Family("falcon (multi-query)", "FalconForCausalLM"),
    Family("falcon (alibi)", "FalconForCausalLM", note="ALiBi by position"),
    Family("mpt", "MptForCausalLM", can_batch=False, note="ALiBi by position, one row at a time"),
    Family("phi", "PhiForCausalLM"),
    Family("phi3", "Phi3ForCausalLM"),
    Family("phi3 (window)", "Phi3ForCausalLM", masks=WINDOW),
    Family("phimoe", "PhimoeForCausalLM"),
    Family(
        "phi3 (longrope)",
        "Phi3ForCausalLM",
        can_batch=False,
        note="longrope: no draft crosses its original length, where the text is fed anew",
    ),
    Family(
        "minicpm3 (longrope)",
        "MiniCPM3ForCausalLM",
        can_batch=False,
        note="longrope: no draft crosses its original length",
    ),
    Family("glm", "GlmForCausalLM"),
    Family("glm4", "Glm4ForCausalLM"),
    Family("glm4_moe", "Glm4MoeForCausalLM"),
    Family("glm4_moe_lite", "Glm4MoeLiteForCausalLM"),
    Family("glm_moe_dsa", "GlmMoeDsaForCausalLM", masks=BY_TYPE),
    Family("deepseek_v2", "DeepseekV2ForCausalLM"),
    Family("deepseek_v3", "DeepseekV3ForCausalLM"),
    Family("deepseek_v32", "DeepseekV32ForCausalLM", masks=BY_TYPE),
    Family("cohere", "CohereForCausalLM"),
    Family("cohere2", "Cohere2ForCausalLM", masks=BY_TYPE),
    Family("cohere2_moe", "Cohere2MoeForCausalLM", masks=BY_TYPE),
    Family("olmo", "OlmoForCausalLM"),
    Family("olmo2", "Olmo2ForCausalLM"),
    Family("olmo3", "Olmo3ForCausalLM", masks=BY_TYPE),
    Family("olmoe", "OlmoeForCausalLM"),
    Family("flex_olmo", "FlexOlmoForCausalLM"),
    Family("granite", "GraniteForCausalLM"),
    Family("granitemoe", "GraniteMoeForCausalLM"),
    Family("granitemoeshared", "GraniteMoeSharedForCausalLM"),
    Family("granite_swa", "GraniteSWAForCausalLM", masks=BY_TYPE),
    Family("granitemoe_swa", "GraniteMoeSWAForCausalLM", masks=BY_TYPE),
    Family("starcoder2", "Starcoder2ForCausalLM", masks=WINDOW),
    Family("smollm3", "SmolLM3ForCausalLM"),
    Family("stablelm", "StableLmForCausalLM"),
    Family("nemotron", "NemotronForCausalLM"),
    Family("persimmon", "PersimmonForCausalLM"),
    Family("helium", "HeliumForCausalLM"),
    Family("minicpm3", "MiniCPM3ForCausalLM"),
    Family("ernie4_5", "Ernie4_5ForCausalLM"),
    Family("ernie4_5_moe", "Ernie4_5_MoeForCausalLM"),
    Family("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM"),
    Family("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM"),
    Family("seed_oss", "SeedOssForCausalLM"),
    Family("arcee", "ArceeForCausalLM"),
    Family("dbrx", "DbrxForCausalLM"),
    Family("jetmoe", "JetMoeForCausalLM"),
    Family("minimax_m2", "MiniMaxM2ForCausalLM"),
    Family("minimax_m3_vl_text", "MiniMaxM3VLForCausalLM"),
    Family("diffllama", "DiffLlamaForCausalLM"),
    Family(
        "doge",
        "DogeForCausalLM",
        mode=PLAIN,
        can_batch=False,
        note="its attention keeps the highest scores of all that is fed, so feeding more at once changes the result",
    ),
    Family("ctrl", "CTRLLMHeadModel"),
    Family("biogpt", "BioGptForCausalLM"),
    Family("apertus", "ApertusForCausalLM"),
    Family("aria_text", "AriaTextForCausalLM"),
    Family("bitnet", "BitNetForCausalLM"),
    Family("hyperclovax", "HyperCLOVAXForCausalLM"),
    Family("jais2", "Jais2ForCausalLM"),
    Family("nanochat", "NanoChatForCausalLM"),
    Family("solar_open", "SolarOpenForCausalLM"),
    Family("hy_v3", "HYV3ForCausalLM"),
    Family("hy_v4", "HYV4ForCausalLM", masks=BY_TYPE),
    Family("ministral", "MinistralForCausalLM", masks=BY_TYPE),
    Family("ministral3", "Ministral3ForCausalLM"),
    Family("hrm_text", "HrmTextForCausalLM"),
    Family("youtu", "YoutuForCausalLM"),
    Family("longcat_flash", "LongcatFlashForCausalLM"),
    Family("axk1", "AXK1ForCausalLM"),
    Family("axk2", "AXK2ForCausalLM", masks=BY_TYPE),
    Family("gpt_oss", "GptOssForCausalLM", masks=BY_TYPE),
    Family("exaone4", "Exaone4ForCausalLM", masks=BY_TYPE),
    Family("exaone_moe", "ExaoneMoeForCausalLM", masks=BY_TYPE),
    Family(
        "llama4_text",
        "Llama4ForCausalLM",
        masks=BY_TYPE,
        can_batch=False,
        note="query scale by position, one row at a time",
    ),
    Family("modernbert-decoder", "ModernBertDecoderForCausalLM", masks=BY_TYPE),
    Family("afmoe", "AfmoeForCausalLM", masks=BY_TYPE),
    Family("cwm", "CwmForCausalLM", masks=BY_TYPE),
    Family("flint", "FlintForCausalLM", masks=BY_TYPE),
    Family("kolibri1", "Kolibri1ForCausalLM", masks=BY_TYPE),
    Family("laguna", "LagunaForCausalLM", masks=BY_TYPE),
    Family("mellum", "MellumForCausalLM", masks=BY_TYPE),
    Family("mimo_v2_flash", "MiMoV2FlashForCausalLM", masks=BY_TYPE),
    Family("beam", "BeamForCausalLM", masks=BY_TYPE),
    Family("dots1", "Dots1ForCausalLM", masks=BY_TYPE),
    Family("cohere_compass_text", "CohereCompassForCausalLM", masks=BY_TYPE),
    Family("dots3_note_text", "Dots3NoteForCausalLM", masks=BY_TYPE),
)
"""Families of Transformers whose memory of the text is keys and values."""

STATEFUL: tuple[Family, ...] = (
    _stateful("mamba2", "Mamba2ForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("bamba", "BambaForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("falcon_h1", "FalconH1ForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("granitemoehybrid", "GraniteMoeHybridForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("zamba2", "Zamba2ForCausalLM", PLAIN, _CLAMPS),
    _stateful("nemotron_h", "NemotronHForCausalLM", PLAIN, _CLAMPS),
    _stateful("qwen3_next", "Qwen3NextForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("qwen3_5", "Qwen3_5ForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("qwen3_5_moe", "Qwen3_5MoeForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("kimi_linear", "KimiLinearForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("bailing_hybrid", "BailingHybridForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("olmo_hybrid", "OlmoHybridForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("lfm2", "Lfm2ForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("lfm2_moe", "Lfm2MoeForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("lfm3", "Lfm3ForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("zaya", "ZayaForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("inkling", "InklingForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("inkling2", "Inkling2ForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("deepseek_v4", "DeepseekV4ForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("minimax", "MiniMaxForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful(
        "minimax (linear 1st)",
        "MiniMaxForCausalLM",
        PLAIN,
        "self-check: logits of a chain differ from those of its own paths",
    ),
    _stateful("rwkv", "RwkvForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("xlstm", "xLSTMForCausalLM", CHAIN, _ONE_CHAIN),
    _stateful("mamba", "MambaForCausalLM", PLAIN, _FORGETS),
    _stateful("falcon_mamba", "FalconMambaForCausalLM", PLAIN, _FORGETS),
    _stateful("jamba", "JambaForCausalLM", PLAIN, _FORGETS),
    _stateful("zamba", "ZambaForCausalLM", PLAIN, _FORGETS),
    _stateful("recurrent_gemma", "RecurrentGemmaForCausalLM", PLAIN, _FORGETS),
    _stateful(
        "openai-gpt",
        "OpenAIGPTLMHeadModel",
        PLAIN,
        "its forward takes no cache, so every token costs a forward over the whole text",
    ),
)
"""Families of Transformers with another memory of the text than keys and values, or with none."""

OWN: tuple[Family, ...] = (
    Family("baichuan_13b", "Baichuan13BForCausalLM", note=_OWN),
    Family("glm_10b", "Glm10BForCausalLM", note=_OWN),
)
"""Families that Transformers no longer has."""


def all_families() -> tuple[Family, ...]:
    """All rows. A group of families in a file of its own is added here."""
    return ATTENTION + STATEFUL + OWN
