"""The projection head and maxout are their formulas."""

import torch

from fastgen.nn import Maxout, ProjectionHead


def test_projection_is_its_formula():
    head, h, labels = ProjectionHead(5, 3), torch.randn(4, 5), torch.tensor([2, 0, 1, 2])
    expected = [
        h[i] @ (head.linear.weight[0] + head.embedding.weight[labels[i]]) + head.linear.bias[0] for i in range(4)
    ]
    torch.testing.assert_close(head(h, labels), torch.stack(expected))
    plain = ProjectionHead(5)
    torch.testing.assert_close(plain(h), h @ plain.linear.weight[0] + plain.linear.bias)
    assert set(plain.state_dict()) == {"linear.weight", "linear.bias"}


def test_maxout_takes_the_largest_of_its_pieces():
    layer, x = Maxout(4, 3, pieces=2), torch.randn(7, 4)
    pieces = layer.linear(x).view(7, 3, 2)
    assert torch.equal(layer(x), pieces.max(2).values)
    # The absolute value is two pieces.
    with torch.no_grad():
        absolute = Maxout(1, 1, pieces=2)
        absolute.linear.weight.copy_(torch.tensor([[1.0], [-1.0]]))
        absolute.linear.bias.zero_()
        torch.testing.assert_close(absolute(x[:, :1]), x[:, :1].abs())
