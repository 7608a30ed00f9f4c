"""How configs are made small: by field, and by architecture where that does not do."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What an architecture needs beyond the general way.

    Attributes:
        sizes: field → value, in its config and in those inside it.
        config: keywords of its config alone, as they are.
        length: of the texts.
        image: height and width of the images.
    """

    sizes: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    length: int = 7
    image: int = 32


_BY_VALUE: dict[int, str] = {
    # widths
    16: """hidden_size d_model n_embd dim emb_dim embed_dim embedding_size embedding_dim d_latents width
        input_embedding_size output_embedding_size hidden_size_global moe_intermediate_size hidden_size_per_layer_input
        entity_emb_size pronunciation_embed_dim shape_embed_dim lru_width out_hidden_size projection_dim
        true_hidden_size cross_attention_hidden_size embedding_rank prediction_head_size backbone_hidden_size
        stem_hidden_size text_embed_dim conv_dim adapter_out_dim expert_ffn_hidden_size
        shared_intermediate_size router_hidden_size intra_bottleneck_size classifier_proj_size encoder_hidden_size
        projector_input_dim projector_output_dim vision_output_dim neck_hidden_size output_channels""",
    24: """intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner hidden_dim dim_ff n_inner
        shared_expert_intermediate_size feed_forward_size ffn_hidden_size intermediate_size_mlp
        dense_intermediate_size moe_shared_expert_intermediate_size shared_experts_intermediate_size mlp_dim""",
    8: """head_dim v_head_dim qk_nope_head_dim qk_rope_head_dim d_kv d_head kv_lora_rank q_lora_rank attention_head_size
        index_head_dim global_head_dim swa_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim
        kv_channels rotary_dim o_lora_rank mamba_head_dim mamba_d_head laurel_rank d_rel dim_head swa_v_head_dim
        gated_norm_rank xpath_unit_hidden_size hc_lowrank sliding_window attention_window_size adapter_rank
        time_step_rank num_latents lsh_attn_chunk_length local_attn_chunk_length num_landmarks expert_capacity""",
    # counts
    2: """num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads attention_heads
        num_encoder_attention_heads num_decoder_attention_heads num_key_value_heads num_self_attention_heads
        num_cross_attention_heads num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers
        num_decoder_layers num_encoder_layers depth num_experts_per_tok index_n_heads num_local_heads
        linear_num_key_heads linear_num_value_heads
        swa_num_attention_heads swa_num_key_value_heads linear_num_heads moe_topk num_self_attends_per_block
        speech_encoder_layers speech_encoder_attention_heads t2u_encoder_layers t2u_encoder_attention_heads
        t2u_decoder_layers t2u_decoder_attention_heads num_hash num_sparse_encoder_layers num_sparse_decoder_layers
        top_k_experts moe_top_k num_feedforward_networks global_attn_every_n_layers num_global_layers""",
    4: """num_experts n_routed_experts num_local_experts moe_num_experts patch_size mamba_d_state state_size
        ssm_state_size zero_expert_num position_bias_num_buckets window_size block_size index_topk""",
    1: """n_group topk_group n_groups mamba_n_groups first_k_dense_replace""",
    40: "vocab_size src_vocab_size tgt_vocab_size audio_vocab_size vocab_size_per_layer_input t2u_vocab_size",
    64: """max_position_embeddings n_positions max_2d_position_embeddings max_seq_len n_ctx context_length
        max_source_positions max_target_positions max_encoder_position_embeddings max_decoder_position_embeddings
        num_position_embeddings position_embedding_size entity_vocab_size pronunciation_vocab_size shape_vocab_size
        num_hash_buckets t2u_max_position_embeddings""",
    32: "image_size",
    0: "pad_index",
}
SIZES: dict[str, int] = {name: value for value, names in _BY_VALUE.items() for name in names.split()}

# Set in every config, also where it has none by default: below the first word.
SPECIAL_TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}

# Fields with an entry for every stage of a network for images.
STAGES: dict[str, int] = {
    "depths": 1,
    "hidden_sizes": 16,
    "embed_dims": 16,
    "num_heads": 2,
    "num_attention_heads": 2,
    "embed_dim": 16,
    "depth": 1,
    "stage_numb_of_layers": 1,
}

HYBRID = ["linear_attention", "full_attention"]
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 2, "mamba_d_state": 4, "mamba_chunk_size": 4}

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
INDEXER = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
}

ARCHITECTURES: dict[str, Settings] = {
    "bailing_hybrid": Settings({"layer_group_size": 2}),
    "bamba": Settings(MAMBA, {"attn_layer_indices": [1]}),
    "bit": Settings({"num_groups": 2, "embedding_size": 8}),
    "blt": Settings({"encoder_hash_byte_group_vocab": 64}),
    "bros": Settings({"hidden_size": 64}),
    "codegen": Settings({"n_head": 4, "rotary_dim": 2, "n_embd": 16}),
    "cohere_compass_text": Settings({"rope_parameters": {"full_attention": ROPE}}),
    "cvt": Settings({"num_heads": (1, 2, 2), "embed_dim": (8, 16, 16), "depth": (1, 2, 3)}),
    "dbrx": Settings(config={"attn_config": {"kv_n_heads": 1, "rope_theta": 10000.0, "clip_qkv": 8.0}}),
    "deepseek_v2": Settings({"num_experts_per_tok": 2}),
    "donut-swin": Settings({"window_size": 2, "patch_size": 2}),
    "dots1": Settings({"n_routed_experts": 4, "num_local_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}),
    "efficientnet": Settings({"width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320}),
    "ernie4_5_moe": Settings({"moe_k": 2}),
    "esm": Settings({"vocab_size": 40}),
    "falcon_h1": Settings(MAMBA | {"mamba_d_ssm": 32}),
    "gemma3n_text": Settings({"num_kv_shared_layers": 0}),
    "gpt_neo": Settings(config={"attention_types": [[["global", "local"], 1]]}),
    "glmasr": Settings({"num_key_value_heads": 2, "head_dim": 8}),
    "granitemoehybrid": Settings(MAMBA, {"layer_types": ["mamba", "attention"]}),
    "hgnet_v2": Settings(
        {
            "stem_channels": (3, 8, 8),
            "stage_in_channels": (8, 8, 16, 16),
            "stage_mid_channels": (8, 8, 8, 8),
            "stage_out_channels": (8, 16, 16, 16),
            "stage_num_blocks": (1, 1, 1, 1),
            "stage_numb_of_layers": (1, 1, 1, 1),
            "hidden_sizes": (8, 16, 16, 16),
        }
    ),
    "hiera": Settings(
        {"embed_dim": 8, "image_size": (32, 32), "num_heads": (1, 2, 2, 2), "depths": (1, 1, 1, 1), "num_query_pool": 2}
    ),
    "hunyuan_v1_dense": Settings({"head_dim": 8}),
    "hunyuan_v1_moe": Settings({"head_dim": 8}),
    "jamba": Settings({"attn_layer_period": 2, "attn_layer_offset": 1}),
    "kimi_linear": Settings({"layer_types": HYBRID}),
    "layoutlmv3": Settings({"coordinate_size": 2, "shape_size": 4, "image_size": 32, "input_size": 32}),
    "led": Settings({"attention_window": 4}),
    "levit": Settings(
        {"hidden_sizes": (16, 16, 16), "key_dim": (8, 8, 8), "image_size": 64, "patch_size": 16}, image=64
    ),
    "lfm2_moe": Settings({"layer_types": ["conv", "full_attention"]}),
    "lfm3": Settings({"layer_types": ["conv", "full_attention"]}),
    "lilt": Settings({"max_2d_position_embeddings": 64, "hidden_size": 24, "channel_shrink_ratio": 2}),
    "longformer": Settings({"attention_window": 4}),
    "mamba2": Settings({"num_heads": 4, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 4}),
    "ministral": Settings({"head_dim": 8}),
    "mobilenet_v1": Settings({"depth_multiplier": 0.1}),
    "mobilenet_v2": Settings({"depth_multiplier": 0.1}),
    "mobilevit": Settings({"hidden_sizes": (16, 16, 16), "neck_hidden_sizes": (8,) * 7, "patch_size": 2}),
    "mobilevitv2": Settings({"base_attn_unit_dims": (16, 16, 16), "width_multiplier": 0.25, "patch_size": 1}),
    "musicgen": Settings({"num_codebooks": 1}),
    "musicgen_melody": Settings({"num_codebooks": 1}),
    "nemotron": Settings({"head_dim": 8, "num_key_value_heads": 2}),
    "nemotron_h": Settings(
        {
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": 4,
            "num_hidden_layers": 3,
            "layers_block_type": ["mamba", "attention", "moe"],
        }
    ),
    "nemo_speechlm": Settings({"audio_hidden_size": 16}),
    "neomme": Settings({"hidden_size": 32, "head_dim": 16}),
    "nystromformer": Settings({"num_landmarks": 8, "segment_means_seq_len": 8}, length=8),
    "perceiver": Settings({"num_latents": 4, "num_heads": 1, "num_cross_attention_heads": 1}),
    "pp_lcnet": Settings({"scale": 0.1}),
    "qwen3_5": Settings({"layer_types": HYBRID}),
    "qwen3_5_moe": Settings({"layer_types": HYBRID}),
    "qwen3_5_text": Settings({"layer_types": HYBRID}),
    "qwen3_next": Settings({"layer_types": HYBRID}),
    "qwen4_exp": Settings({"layer_types": HYBRID} | INDEXER),
    "qwen4_exp_text": Settings({"layer_types": HYBRID} | INDEXER),
    "recurrent_gemma": Settings({"num_hidden_layers": 3, "block_types": ("recurrent", "recurrent", "attention")}),
    "reformer": Settings({"axial_pos_shape": (4, 4), "axial_pos_embds_dim": (8, 8), "hash_seed": 0}, length=16),
    "siglip2": Settings({"num_patches": 16}),
    "swin": Settings({"window_size": 2, "patch_size": 2}),
    "textnet": Settings({"stem_out_channels": 16}),
    "vibevoice_asr": Settings({"num_filters": 2, "downsampling_ratios": (2, 2), "depths": (1, 1, 1)}),
    "voxtral": Settings({"num_key_value_heads": 2, "head_dim": 8}),
    "xlstm": Settings({"hidden_size": 64, "embedding_dim": 64, "chunk_size": 4, "qk_dim_factor": 1.0}),
    "xmod": Settings(config={"languages": ["en_XX"], "default_language": "en_XX"}),
    "zamba": Settings({"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"]}),
    "zamba2": Settings({"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 2, "mamba_headdim": 16}),
    "zaya": Settings({"num_experts_per_tok": 1}),
}
