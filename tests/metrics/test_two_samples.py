"""FID, KID, CMMD, precision, recall, density and coverage, against what people quote."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance as TorchmetricsFID
from torchmetrics.image.kid import KernelInceptionDistance as TorchmetricsKID

from fastgen.metrics import (
    ClipMaximumMeanDiscrepancy,
    DensityCoverage,
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
    PrecisionRecall,
    SlicedWasserstein,
    read_statistics,
    write_statistics,
)
from fastgen.metrics.feature_metric import order_of, row_keys
from tests.metrics.two_processes import FAKE, REAL, metrics, numbers, worker
from tests.ranks import run_on_ranks

N, M, D = 300, 250, 16


def sets(n=N, m=M, d=D, seed=0):
    random = np.random.default_rng(seed)
    scale = np.linspace(0.2, 2, d)
    real = random.standard_normal((n, d)) * scale
    fake = random.standard_normal((m, d)) * scale[::-1] + 0.3
    return torch.from_numpy(real), torch.from_numpy(fake)


def fed(metric, real, fake, batch=70):
    for rows, is_real in ((real, True), (fake, False)):
        for part in rows.split(batch):
            metric.update(part, real=is_real)
    return metric


class Features(nn.Module):
    """Gives rows as they are, as torchmetrics asks of an extractor."""

    num_features = D

    def forward(self, x):
        return x


def pytorch_fid(x: np.ndarray, y: np.ndarray) -> float:
    """calculate_frechet_distance of pytorch-fid 0.3.0 (Heusel et al., 2017, equation 6), by its formula."""
    mu1, mu2, sigma1, sigma2 = x.mean(0), y.mean(0), np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    difference = mu1 - mu2
    return float(difference @ difference + np.trace(sigma1 + sigma2 - 2 * sqrtm(sigma1 @ sigma2).real))


class TestFID:
    def test_equals_pytorch_fid_and_torchmetrics(self):
        real, fake = sets()
        ours = fed(FrechetInceptionDistance("given"), real, fake).compute().item()
        assert ours == pytest.approx(pytorch_fid(real.numpy(), fake.numpy()), rel=1e-6)
        theirs = TorchmetricsFID(Features(), input_img_size=(D,), normalize=False).set_dtype(torch.float64)
        for rows, is_real in ((real, True), (fake, False)):
            theirs.update(rows, real=is_real)
        assert ours == pytest.approx(theirs.compute().item(), rel=1e-6)

    def test_fewer_examples_than_features(self):
        real, fake = sets(12, 9, 20)
        ours = fed(FrechetInceptionDistance("given"), real, fake).compute().item()
        # From singular values of the centred rows: no product of covariances, no root of a rounding error.
        a, b = ((rows - rows.mean(0)) / (len(rows) - 1) ** 0.5 for rows in (real, fake))
        overlap = torch.linalg.svdvals(a @ b.T).sum()
        expected = (real.mean(0) - fake.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * overlap
        assert ours == pytest.approx(expected.item(), rel=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_neither_order_nor_batches_matter(self, dtype, monkeypatch):
        real, fake = (rows.to(dtype) for rows in sets())
        whole = fed(FrechetInceptionDistance("given"), real, fake, batch=1000).compute().item()
        # As if there were so many that they are summed up on the way.
        monkeypatch.setattr("fastgen.metrics.frechet_inception_distance._CHUNK", 100)
        for batch in (1, 33):
            parts = fed(FrechetInceptionDistance("given"), real.flip(0), fake.flip(0), batch)
            assert parts.compute().item() == pytest.approx(whole, rel=1e-10)
            assert len(parts.real_rows) < N and len(parts.real_moments) == 1

    def test_of_a_set_with_itself_is_zero(self):
        real, _ = sets()
        assert abs(fed(FrechetInceptionDistance("given"), real, real).compute().item()) < 1e-9

    def test_statistics_files(self, tmp_path):
        real, fake = sets()
        metric = fed(FrechetInceptionDistance("given"), real, fake)
        expected = metric.compute().item()
        metric.save_statistics(tmp_path / "real.npz")
        with np.load(tmp_path / "real.npz") as content:
            # As pytorch-fid and clean-fid read them.
            np.testing.assert_allclose(content["mu"], real.mean(0), rtol=1e-12)
            np.testing.assert_allclose(content["sigma"], np.cov(real.numpy(), rowvar=False), rtol=1e-10, atol=1e-12)
        for reference in (tmp_path / "real.npz", str(tmp_path / "real.npz"), read_statistics(tmp_path / "real.npz")):
            cached = FrechetInceptionDistance("given", reference=reference)
            cached.update(fake, real=False)
            assert cached.compute().item() == pytest.approx(expected, rel=1e-10)
        with pytest.raises(ValueError, match=r"the real statistics are those of .*real.npz"):
            cached.update(real, real=True)
        cached.save_statistics(tmp_path / "again.npz")
        assert torch.equal(read_statistics(tmp_path / "again.npz").sigma, read_statistics(tmp_path / "real.npz").sigma)

    def test_reset(self):
        real, fake = sets()
        metric = fed(FrechetInceptionDistance("given", reset_real_features=False), real, fake)
        first = metric.compute().item()
        metric.reset()
        metric.update(fake, real=False)
        assert metric.compute().item() == pytest.approx(first, rel=1e-12)
        metric = fed(FrechetInceptionDistance("given"), real, fake)
        metric.reset()
        metric.update(fake, real=False)
        with pytest.raises(ValueError, match="at least 2 real examples, got 0"):
            metric.compute()

    def test_of_images(self):
        images = torch.randint(0, 256, (40, 1, 3, 3), dtype=torch.uint8)
        metric = fed(FrechetInceptionDistance("pixels"), images, images.flip(3), 16)
        expected = pytorch_fid(images.flatten(1).numpy() / 255, images.flip(3).flatten(1).numpy() / 255)
        assert metric.compute().item() == pytest.approx(expected, rel=1e-5)

    def test_single_precision_products(self):
        real, fake = (rows.float() for rows in sets(3000, 3000))
        exact = fed(FrechetInceptionDistance("given"), real, fake).compute().item()
        quick = fed(FrechetInceptionDistance("given", products=torch.float32), real, fake).compute().item()
        assert quick == pytest.approx(exact, rel=1e-5)
        with pytest.raises(TypeError, match="products"):
            FrechetInceptionDistance("given", products=torch.float16)


class TestStatisticsFiles:
    @pytest.mark.parametrize(
        ("arrays", "said"),
        [
            ({"mu": np.zeros(3)}, "holds no sigma, expected mu and sigma, got mu"),
            ({"sigma": np.eye(3)}, "holds no mu"),
            ({"images": np.zeros(3)}, "holds no mu and no sigma"),
            ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"expected mu \[d\] and sigma \[d, d\]"),
            ({"mu": np.array([np.nan, 0]), "sigma": np.eye(2)}, "NaN or infinity"),
        ],
    )
    def test_refuses(self, tmp_path, arrays, said):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(ValueError, match=said):
            read_statistics(tmp_path / "x.npz")

    def test_refuses_what_is_no_file(self, tmp_path):
        (tmp_path / "x.npz").write_bytes(b"PK nothing")
        with pytest.raises(ValueError, match=r"x.npz is not a whole .npz file"):
            read_statistics(tmp_path / "x.npz")
        np.save(tmp_path / "x.npy", np.zeros(3))
        with pytest.raises(ValueError, match="holds one array"):
            read_statistics(tmp_path / "x.npy")
        with pytest.raises(ValueError, match="no file"):
            read_statistics(tmp_path / "nowhere.npz")

    def test_matrices_that_are_no_covariances(self, tmp_path):
        fake = torch.randn(10, 2, dtype=torch.float64)
        lopsided, negative = [[1.0, 0.5], [0.0, 1.0]], [[1.0, 0.0], [0.0, -0.5]]
        for sigma, said in ((lopsided, "symmetric"), (negative, "eigenvalues from -0.5")):
            write_statistics(tmp_path / "x.npz", torch.zeros(2), torch.tensor(sigma))
            metric = FrechetInceptionDistance("given", reference=tmp_path / "x.npz")
            metric.update(fake, real=False)
            with pytest.raises(ValueError, match=said):
                metric.compute()

    def test_statistics_of_other_features(self, tmp_path):
        write_statistics(tmp_path / "x.npz", torch.zeros(3), torch.eye(3))
        metric = FrechetInceptionDistance("given", reference=tmp_path / "x.npz")
        with pytest.raises(ValueError, match="expected 3 columns as before, got 2"):
            metric.update(torch.randn(4, 2), real=False)


def polynomial_kernel_mmd(x, y, degree=3, coef=1.0):
    """The unbiased estimate of Binkowski et al. (2018), as torch-fidelity and KID's authors compute it."""

    def kernel(a, b):
        return (a @ b.T / x.shape[1] + coef) ** degree

    kxx, kyy, kxy = kernel(x, x), kernel(y, y), kernel(x, y)
    m = len(x)
    return ((kxx.sum() - np.trace(kxx)) + (kyy.sum() - np.trace(kyy))) / (m * (m - 1)) - 2 * kxy.sum() / m**2


class TestKID:
    def test_equals_torchmetrics_where_subsets_are_everything(self):
        real, fake = sets(200, 200)
        ours = fed(KernelInceptionDistance("given", subsets=3, subset_size=200), real, fake).compute()
        theirs = TorchmetricsKID(Features(), subsets=3, subset_size=200, normalize=False)
        theirs.set_dtype(torch.float64)
        for rows, is_real in ((real, True), (fake, False)):
            theirs.update(rows, real=is_real)
        torch.testing.assert_close(ours[0], theirs.compute()[0].double(), rtol=1e-6, atol=0)
        assert ours[1] < 1e-12

    def test_subsets_are_the_formula(self):
        real, fake = sets()
        mean, deviation = fed(KernelInceptionDistance("given", subsets=5, subset_size=50, seed=4), real, fake).compute()
        generator = torch.Generator().manual_seed(4)
        found = []
        for _ in range(5):
            x, y = (
                rows[order_of(row_keys(rows))][torch.randperm(len(rows), generator=generator)[:50]].numpy()
                for rows in (real, fake)
            )
            found.append(polynomial_kernel_mmd(x, y))
        assert mean.item() == pytest.approx(np.mean(found), rel=1e-9)
        assert deviation.item() == pytest.approx(np.std(found), rel=1e-9)

    def test_depends_on_seed_and_examples_alone(self):
        real, fake = sets()
        first, again, other = (
            fed(KernelInceptionDistance("given", subset_size=100, seed=seed), *rows, batch).compute()
            for seed, rows, batch in (
                (0, (real, fake), 70),
                (0, (real.flip(0), fake.flip(0)), 13),
                (1, (real, fake), 70),
            )
        )
        assert first == again and first != other
        assert other[0].item() == pytest.approx(first[0].item(), abs=first[1].item())

    def test_refuses(self):
        with pytest.raises(ValueError, match="subset_size: expected an int of at least 2"):
            KernelInceptionDistance("given", subset_size=1)
        with pytest.raises(ValueError, match="seed"):
            KernelInceptionDistance("given", seed=-1)
        with pytest.raises(ValueError, match="subsets of 1000 need as many real examples, got 300"):
            fed(KernelInceptionDistance("given"), *sets()).compute()


class TestCMMD:
    def test_is_the_formula(self):
        real, fake = sets(60, 50)
        x, y = (rows / rows.norm(dim=1, keepdim=True) for rows in (real, fake))

        def kernel(a, b):
            return torch.exp(-(a[:, None] - b[None]).square().sum(2) / (2 * 10.0**2)).mean()

        expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
        found = fed(ClipMaximumMeanDiscrepancy("given"), real, fake).compute()
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        plain = fed(ClipMaximumMeanDiscrepancy("given", normalize=False, sigma=1.0, scale=1.0), real, real).compute()
        assert abs(plain.item()) < 1e-12

    def test_refuses(self):
        with pytest.raises(ValueError, match="sigma"):
            ClipMaximumMeanDiscrepancy("given", sigma=0.0)


class TestPRDC:
    @pytest.mark.parametrize("k", [1, 3, 5])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equals_prdc(self, k, dtype, capsys):
        from prdc import compute_prdc

        real, fake = (rows.to(dtype) for rows in sets(120, 90))
        theirs = compute_prdc(real.double().numpy(), fake.double().numpy(), k)
        ours = fed(PrecisionRecall("given", nearest_k=k), real, fake).compute()
        ours |= fed(DensityCoverage("given", nearest_k=k), real, fake).compute()
        assert set(ours) == set(theirs)
        for name, value in theirs.items():
            assert ours[name].item() == pytest.approx(value, rel=1e-12), name

    def test_equals_torch_fidelity(self):
        """calculate_precision_recall of torch-fidelity 0.4.0: all distances, kthvalue, within or at the radius."""
        real, fake = sets(100, 80)
        reach_real = torch.cdist(real, real).kthvalue(4).values
        reach_fake = torch.cdist(fake, fake).kthvalue(4).values
        between = torch.cdist(fake, real)
        found = fed(PrecisionRecall("given"), real, fake).compute()
        precision = (between <= reach_real).any(1).double().mean().item()
        recall = (reach_fake >= between.T).any(1).double().mean().item()
        assert found["precision"].item() == pytest.approx(precision, rel=1e-12)
        assert found["recall"].item() == pytest.approx(recall, rel=1e-12)

    def test_of_the_same_and_of_far_off_examples(self):
        real, _ = sets()
        found = (
            fed(DensityCoverage("given"), real, real).compute() | fed(PrecisionRecall("given"), real, real).compute()
        )
        # Each ball holds its centre and k - 1 neighbours, and the k-th where rounding takes it in.
        assert 1 - 1e-12 <= found.pop("density").item() <= 1.2 + 1e-12
        assert [value.item() for value in found.values()] == [1, 1, 1]
        far = real + 1e3
        found = fed(DensityCoverage("given"), real, far).compute() | fed(PrecisionRecall("given"), real, far).compute()
        assert all(value.item() == 0 for value in found.values())

    def test_refuses(self):
        for metric in (PrecisionRecall, DensityCoverage):
            with pytest.raises(ValueError, match="nearest_k"):
                metric("given", nearest_k=0)
            with pytest.raises(ValueError, match="5 neighbours need at least 6 generated examples, got 4"):
                fed(metric("given", nearest_k=5), *sets(10, 4)).compute()


EVERY = [
    FrechetInceptionDistance,
    KernelInceptionDistance,
    ClipMaximumMeanDiscrepancy,
    PrecisionRecall,
    DensityCoverage,
    SlicedWasserstein,
]


@pytest.mark.parametrize("metric", EVERY)
class TestBadInput:
    def test_rows_that_are_not_finite(self, metric):
        rows = torch.randn(7, 3)
        rows[2, 1], rows[5, 0] = torch.nan, torch.inf
        with pytest.raises(ValueError, match="features: 2 of 7 rows hold NaN or infinity"):
            metric("given").update(rows, real=True)

    def test_rows_of_another_width(self, metric):
        found = metric("given")
        found.update(torch.randn(5, 3), real=True)
        with pytest.raises(ValueError, match="features: expected 3 columns as before, got 4"):
            found.update(torch.randn(5, 4), real=False)

    def test_too_few(self, metric):
        found = metric("given")
        found.update(torch.randn(5, 3), real=True)
        with pytest.raises(ValueError, match=r"at least \d generated examples, got 0"):
            found.compute()

    def test_what_is_no_batch(self, metric):
        with pytest.raises(TypeError, match="imgs: expected a tensor"):
            metric("given").update([[1.0]], real=True)
        with pytest.raises(ValueError, match=r"rows \[B, d\]"):
            metric("given").update(torch.randn(3), real=True)
        with pytest.raises(ValueError, match=r"features: expected \[4, d\]"):
            metric(nn.Flatten(0)).update(torch.randn(4, 3), real=True)


def test_two_processes_equal_one():
    run_on_ranks(worker, numbers(metrics(), REAL, FAKE))


def test_inception_score_is_taken_of_generated_images_alone():
    metric = InceptionScore("given", splits=2)
    metric.update(torch.randn(30, 4))
    assert len(metric.compute()) == 2
