"""Prompts with images or embeddings: fed as the model feeds them, then drafted for like any text."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

import pia
from pia.errors import UnsupportedOptionError
from quick_check import OPTIONS, assert_drafts_used, compare
from toys import VOCAB, ToySource, prompts, tiny_model

IMAGE = VOCAB - 1
_TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    initializer_range=0.25,
    tie_word_embeddings=False,
)
_SIGHT = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8)
_IDS = dict(image_token_id=IMAGE, tie_word_embeddings=False)
_MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
_QWEN = dict(_IDS, video_token_id=95, vision_start_token_id=94, vision_end_token_id=93)
_QWEN_SIGHT = dict(depth=1, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
_SIGLIP = dict(_SIGHT, model_type="siglip_vision_model", vision_use_head=False, patch_size=4)


def llava():
    vision = dict(_SIGHT, model_type="clip_vision_model", projection_dim=16, patch_size=4)
    text = dict(_TEXT, model_type="llama")
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(text_config=text, vision_config=vision, image_seq_length=4, **_IDS)
    )


def gemma3():
    layers = ["sliding_attention", "full_attention"]
    text = dict(_TEXT, model_type="gemma3_text", head_dim=8, sliding_window=8, layer_types=layers)
    config = hf.Gemma3Config(text_config=text, vision_config=_SIGLIP, mm_tokens_per_image=4, **_IDS)
    model = hf.Gemma3ForConditionalGeneration(config)
    model.model.multi_modal_projector.mm_input_projection_weight.data.normal_(0, 0.5)  # zeros before training
    return model


def paligemma():
    text, vision = dict(_TEXT, model_type="gemma", head_dim=8), dict(_SIGLIP, projection_dim=32)
    return hf.PaliGemmaForConditionalGeneration(
        hf.PaliGemmaConfig(text_config=text, vision_config=vision, projection_dim=32, **_IDS)
    )


def qwen2_vl():
    text = dict(_TEXT, model_type="qwen2_vl_text", **_MROPE)
    vision = dict(_QWEN_SIGHT, embed_dim=16, hidden_size=32, mlp_ratio=2)
    return hf.Qwen2VLForConditionalGeneration(hf.Qwen2VLConfig(text_config=text, vision_config=vision, **_QWEN))


def qwen2_5_vl():
    text = dict(_TEXT, model_type="qwen2_5_vl_text", **_MROPE)
    sight = dict(hidden_size=16, intermediate_size=32, out_hidden_size=32, window_size=16, fullatt_block_indexes=[0])
    vision = dict(_QWEN_SIGHT, **sight)
    return hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_QWEN))


def qwen3_vl():
    text = dict(_TEXT, model_type="qwen3_vl_text", head_dim=8, **_MROPE)
    sight = dict(hidden_size=16, intermediate_size=32, out_hidden_size=32, deepstack_visual_indexes=[0])
    vision = dict(_QWEN_SIGHT, num_position_embeddings=16, **sight)
    return hf.Qwen3VLForConditionalGeneration(hf.Qwen3VLConfig(text_config=text, vision_config=vision, **_QWEN))


def idefics3():
    text, vision = dict(_TEXT, model_type="llama"), dict(_SIGHT, model_type="idefics3_vision", patch_size=4)
    config = hf.Idefics3Config(text_config=text, vision_config=vision, scale_factor=2, **_IDS)
    return hf.Idefics3ForConditionalGeneration(config)


def smolvlm():
    text, vision = dict(_TEXT, model_type="llama"), dict(_SIGHT, model_type="smolvlm_vision", patch_size=4)
    config = hf.SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=2, **_IDS)
    return hf.SmolVLMForConditionalGeneration(config)


def internvl():
    text = dict(_TEXT, model_type="qwen2")
    vision = dict(_SIGHT, model_type="internvl_vision", patch_size=[2, 2]) | {"image_size": [8, 8]}
    return hf.InternVLForConditionalGeneration(
        hf.InternVLConfig(text_config=text, vision_config=vision, image_seq_length=4, downsample_ratio=0.5, **_IDS)
    )


def mistral3():
    text = dict(_TEXT, model_type="mistral", head_dim=8, sliding_window=None)
    vision = dict(_SIGHT, model_type="pixtral", patch_size=2, head_dim=8)
    return hf.Mistral3ForConditionalGeneration(
        hf.Mistral3Config(text_config=text, vision_config=vision, spatial_merge_size=2, **_IDS)
    )


def _pixels(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _prompt(num_image_tokens, *, before=(5, 6), after=(7, 8, 9)):
    return torch.tensor([[*before, *[IMAGE] * num_image_tokens, *after]])


def _square(ids, seed):
    return {"input_ids": ids, "pixel_values": _pixels(1, 3, 8, 8, seed=seed)}


def _typed(inputs, **extra):
    return {**inputs, "token_type_ids": (inputs["input_ids"] == IMAGE).long(), **extra}


def _qwen(seed):
    """An image of 2 x 3 tokens, which take the places of 3 positions."""
    ids = _prompt(6, before=(5, 94), after=(93, 7, 8))
    return {
        "input_ids": ids,
        "pixel_values": _pixels(24, 3 * 2 * 4 * 4, seed=seed),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


CASES = {
    "llava": (llava, lambda seed: _square(_prompt(4), seed)),
    "gemma3": (gemma3, lambda seed: _typed(_square(_prompt(4, after=(7,)), seed))),
    "qwen2-vl": (qwen2_vl, _qwen),
    "qwen2.5-vl": (qwen2_5_vl, _qwen),
    "qwen3-vl": (qwen3_vl, _qwen),
    "idefics3": (idefics3, lambda seed: {"input_ids": _prompt(1), "pixel_values": _pixels(1, 1, 3, 8, 8, seed=seed)}),
    "smolvlm": (smolvlm, lambda seed: {"input_ids": _prompt(1), "pixel_values": _pixels(1, 1, 3, 8, 8, seed=seed)}),
    "internvl": (internvl, lambda seed: _square(_prompt(4), seed)),
    "mistral3": (mistral3, lambda seed: {**_square(_prompt(4), seed), "image_sizes": torch.tensor([[8, 8]])}),
}


def built(make):
    torch.manual_seed(0)
    model = make().eval()
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model


@pytest.mark.parametrize("name", CASES)
def test_text_after_an_image(name):
    make, inputs_of = CASES[name]
    model = built(make)
    texts = []
    for seed in range(3):
        inputs = inputs_of(seed)
        out = compare(model, inputs.pop("input_ids"), max_new_tokens=30, **inputs)
        assert out.stats.mode in ("tree", "chain"), out.stats.reason
        assert 0 < out.stats.num_accepted < out.stats.num_drafted
        texts.append(tuple(out.sequences[0].tolist()))
    assert len(set(texts)) > 1  # the image is really seen
    assert compare(model, prompts(1, seed=2)[0]).stats.num_accepted > 0  # and text alone, afterwards


def test_sampling_and_automatic_budget_after_an_image():
    model = built(qwen2_vl)
    inputs = _qwen(1)
    options = {**inputs, "max_new_tokens": 24, "do_sample": True, "temperature": 0.8, "top_k": 20}
    lookahead = pia.Lookahead(max_budget=16)
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        expected = model.generate(**options)
        torch.manual_seed(seed)
        assert torch.equal(model.generate(**options, custom_generate=lookahead), expected)


def test_several_images_in_a_batch_decode_plainly():
    model = built(llava)
    inputs = {"input_ids": _prompt(4).repeat(2, 1), "pixel_values": _pixels(2, 3, 8, 8)}
    expected = model.generate(**inputs, **OPTIONS)
    lookahead = pia.Lookahead(budget=8)
    assert torch.equal(model.generate(**inputs, **OPTIONS, custom_generate=lookahead), expected)
    assert lookahead.last_stats.mode == "plain" and "for several rows" in lookahead.last_stats.reason


@pytest.mark.parametrize("make", [qwen2_vl, qwen3_vl])
def test_rows_of_text_alone(make):
    """Their positions have several dimensions, all alike."""
    model = built(make)
    texts = prompts(3, seed=12)
    longest = max(text.shape[1] for text in texts)
    padded = [torch.nn.functional.pad(text, (longest - text.shape[1], 0)) for text in texts]
    masks = [torch.nn.functional.pad(torch.ones_like(text), (longest - text.shape[1], 0)) for text in texts]
    lookahead = pia.Lookahead(budget=8)
    for _ in range(2):
        out = model.generate(torch.cat(padded), attention_mask=torch.cat(masks), custom_generate=lookahead, **OPTIONS)
        for row, text in zip(out, texts, strict=True):
            alone = model.generate(text, attention_mask=torch.ones_like(text), **OPTIONS)
            assert torch.equal(row[longest - text.shape[1] :], alone[0])
    assert lookahead.last_stats.mode == "tree" and lookahead.last_stats.num_accepted > 0


def test_a_chat_about_an_image_keeps_its_cache():
    model = built(llava)
    caches = hf.DynamicCache(), hf.DynamicCache()
    inputs = _square(_prompt(4), 3)
    for question in ([[5, 6]], [[11, 12, 13]]):
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])  # else made by looking for padding
        plain = model.generate(**inputs, past_key_values=caches[0], **OPTIONS)
        lookahead = pia.Lookahead(cache=ToySource(plain[0].tolist(), 0.8), budget=8)
        out = model.generate(**inputs, past_key_values=caches[1], custom_generate=lookahead, **OPTIONS)
        assert torch.equal(out, plain)
        assert lookahead.last_stats.num_accepted > 0
        inputs = {"input_ids": torch.cat([plain, torch.tensor(question)], dim=1)}


def test_positions_of_a_familys_own_decode_plainly():
    model = built(paligemma)
    inputs = _square(_prompt(4), 0)
    out = compare(model, inputs.pop("input_ids"), **inputs)
    assert out.stats.mode == "plain" and "position_ids differs" in out.stats.reason


@pytest.mark.parametrize("with_ids", [False, True], ids=["embeddings alone", "beside their ids"])
def test_embeddings(family, with_ids):
    for prompt in prompts(3, seed=8):
        embeds = family.get_input_embeddings()(prompt).detach() * 1.5  # not what the ids would give
        options = {**OPTIONS, "inputs_embeds": embeds, **({"input_ids": prompt} if with_ids else {})}
        expected = family.generate(**options)
        skipped = 0 if with_ids else prompt.shape[1]
        assert expected.shape[1] == OPTIONS["max_new_tokens"] + prompt.shape[1] - skipped
        lookahead = pia.Lookahead(cache=ToySource(expected[0].tolist(), 0.8), budget=8)
        out = family.generate(**options, custom_generate=lookahead, return_dict_in_generate=True)
        assert torch.equal(out.sequences, expected)
        assert_drafts_used(out)
    learning = pia.Lookahead(budget=8)  # whose drafts come of an empty prompt
    for _ in range(2):
        assert torch.equal(family.generate(**options, custom_generate=learning), expected)


def test_embeddings_that_fill_the_context():
    """Drafts must not look up learned positions that do not exist, though the text is short."""
    model = tiny_model("gpt2")
    embeds = torch.randn((1, 490, 32), generator=torch.Generator().manual_seed(0))
    options = {**OPTIONS, "inputs_embeds": embeds, "max_new_tokens": 22}  # 512 positions in all
    expected = model.generate(**options)
    lookahead = pia.Lookahead(cache=ToySource([*expected[0].tolist(), *[5] * 40], 1.0, depth=8), budget=32)
    assert torch.equal(model.generate(**options, custom_generate=lookahead), expected)
    assert lookahead.last_stats.num_accepted > 0


def test_positions_of_the_callers_own_go_on():
    model, prompt = tiny_model("gpt2"), prompts(1, seed=8)[0]
    positions = torch.arange(prompt.shape[1])[None] * 2 + 3
    out = compare(model, prompt, position_ids=positions)
    assert_drafts_used(out)
    assert not torch.equal(out.sequences, model.generate(prompt, **OPTIONS))


def test_type_ids_are_continued():
    model, prompt = tiny_model("gpt2"), prompts(1, seed=8)[0]
    out = compare(model, prompt, token_type_ids=torch.full_like(prompt, 7))
    assert_drafts_used(out)
    assert not torch.equal(out.sequences, model.generate(prompt, **OPTIONS))


def test_exact_bits_are_refused_behind_other_prompts(llama):
    """They are given for forwards of PIA's own, and the prompt's is the model's."""
    embeds = llama.get_input_embeddings()(prompts(1)[0]).detach()
    with pytest.raises(UnsupportedOptionError, match="more than token ids"):
        llama.generate(inputs_embeds=embeds, **OPTIONS, custom_generate=pia.Lookahead(exact=True))


_SMALL = dict(vocab_size=VOCAB, d_model=16, pad_token_id=0, eos_token_id=2, decoder_start_token_id=1)
_LAYERS = dict(
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=16,
    decoder_ffn_dim=16,
)
ENCODER_DECODERS = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**_SMALL, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**_SMALL, **_LAYERS, bos_token_id=1)),
    "whisper": lambda: hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(**_SMALL, **_LAYERS, num_mel_bins=4, max_source_positions=8, bos_token_id=1)
    ),
}


@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_encoder_decoders_are_refused_by_name(name):
    model = ENCODER_DECODERS[name]().eval()
    inputs = {"input_features": _pixels(1, 4, 16)} if name == "whisper" else {"input_ids": torch.tensor([[5, 6, 2]])}
    with pytest.raises(UnsupportedOptionError, match=f"{type(model).__name__} is an encoder-decoder"):
        model.generate(**inputs, max_new_tokens=4, custom_generate=pia.Lookahead())
