"""The plain decoder in the pieces that become graphs."""

from __future__ import annotations

from reference_model.components.pieces import dense_piece, embed_piece
from reference_model.frame import Blocks, Frame, Head, Norm, Pieces
from reference_model.plain_decoder.model import PlainConfig, plain_block

__all__ = ["pieces"]


def pieces(config: PlainConfig) -> Pieces:
    """Embedding, blocks, head; nothing loops."""
    sizes = {"dim": config.dim, "rope_dim": config.head_dim}
    layers = Blocks("layers", "dense", tuple(f"layers.{layer}" for layer in range(config.layers)))
    return Pieces(
        frame=Frame(
            before=(layers,),
            loop=None,
            after=(),
            head=Head("lm_head.weight", config.vocab_size, config.dim, Norm("norm.weight", config.epsilon)),
        ),
        embed=embed_piece(vocab_size=config.vocab_size, theta=config.theta, **sizes),
        blocks={"dense": dense_piece(plain_block(config), **sizes)},
    )
