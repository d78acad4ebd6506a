"""The options of `fastgen fid`, `score`, `trilemma` and `compare`, and what their `--help` teaches."""

from __future__ import annotations

from argparse import ArgumentParser

from fastgen.device import add_device

_SOURCES = """A and B are, A the reference (real) and B the samples (generated):
  a folder         of pictures (its subfolders too), read a batch at a time
  an .npz file     statistics of pytorch-fid or clean-fid (mu, sigma), for fid alone; or an array named images,
                   features, x or arr_0, and optionally levels, how many intensities its integers have
  an .npy file     images, [N, H, W], [N, C, H, W] or [N, H, W, C]: integers 0 to 255, or floats in [0, 1];
                   or features, numbers [N, d], which are compared as they are
  a table          .csv, .tsv, .txt or .dat, of features; of two with names, the columns are matched by them
  digits           scikit-learn's handwritten digits"""

_FEATURES = """features (--features):
  inception        FID's Inception network: what papers quote. Weights are downloaded once, or named by --weights
  digits           a classifier of scikit-learn's 8x8 digits, trained in seconds and kept
  pixels           the pixels themselves
  timm:NAME        any network of timm, or torchvision:NAME, where installed"""

FID_HELP = f"""{_SOURCES}

{_FEATURES}

examples:
  fastgen fid data/ samples/                              FID proper, with Inception
  fastgen fid cifar10.npz samples/                        against statistics that pytorch-fid or clean-fid saved
  fastgen fid data/ --save data.npz                       save the statistics of A for the next time
  fastgen fid data/ samples/ --resize pytorch-fid         pytorch-fid's numbers instead of clean-fid's
  fastgen fid digits samples.npy --features digits        samples of `fastgen sample RUN --out samples.npy`

FID falls as the number of samples rises, even for a perfect model: compare numbers of the same number of images, 50,000
of them where you compare with papers."""

SCORE_HELP = f"""metrics (--metrics, with commas between):
  fid              Fréchet distance of the features; lower is better
  kid              kernel distance over 100 subsets, unbiased for few images; lower is better
  is               Inception Score of B: sure of each image, unsure of all (needs classes); higher is better
  prdc             precision (do samples look real), recall (is the real set covered), and their robust kin, density
                   and coverage, with 5 neighbours; higher is better
  cmmd             Gaussian kernel distance times 1000; CMMD where the features are CLIP's; lower is better
  swd              sliced Wasserstein distance; lower is better
  parzen           log-likelihood of A under kernels on B, nats; higher is better
  modes            how many classes of A appear in B, and how unevenly (needs classes)

{_SOURCES}

{_FEATURES}

examples:
  fastgen score data/ samples/
  fastgen score data/ samples/ --metrics fid,kid,prdc,is --json
  fastgen score digits samples.npy --features digits --metrics fid,prdc,modes
  fastgen score real.npy generated.npy --metrics prdc     rows of features, made elsewhere

The same seed gives the same numbers, in whatever order the images come."""

TRILEMMA_HELP = """Each RUN is the folder of a run or of a checkpoint, all of the same data. Of each model as many
samples are drawn as there are held-out examples, on one clock, and three things are measured:

  quality          precision: the share of samples that lie among real examples (and density, Fréchet distance)
  diversity        coverage: the share of real examples that have a sample nearby (and recall)
  speed            samples a second, drawn one batch after another, after a first one that does not count

The picture has a triangle for each model with these three as its corners, and the numbers beside it. What is real is
drawn along: the training set itself, of which no model can have more quality and diversity than chance allows.

examples:
  fastgen trilemma runs/pixelcnn-digits runs/glow-digits runs/realnvp-digits
  fastgen trilemma runs/* --picture trilemma.png --json trilemma.json
  fastgen trilemma runs/nsf-two-moons runs/maf-two-moons -n 2000"""

COMPARE_HELP = """Trains each MODEL with its defaults for the data, once for each seed, into OUT/MODEL-SEED, and then
measures the samples of all of them as `fastgen trilemma` does. All seeds set the same examples aside.
The table has the mean over seeds and, behind it, the standard deviation. What has been trained is not
trained again: a comparison that was stopped goes on, and one more model or seed costs its own training
alone.

examples:
  fastgen compare pixelcnn ddpm --data digits
  fastgen compare vae dcgan ddpm flow-matching pixelcnn glow --data digits --seeds 5 --json families.json
  fastgen compare nsf maf realnvp --data two-moons --seeds 1"""


def add_fid(parser: ArgumentParser) -> None:
    """The options of `fastgen fid`."""
    parser.add_argument("a", metavar="A", help="the reference: a folder, a file, or digits")
    parser.add_argument("b", metavar="B", nargs="?", default=None, help="the samples; not needed with --save")
    parser.add_argument("--save", default=None, metavar="FILE", help="write the statistics of A to this .npz")
    _add_sources(parser)


def add_score(parser: ArgumentParser) -> None:
    """The options of `fastgen score`."""
    parser.add_argument("a", metavar="A", help="the reference: a folder, a file, or digits")
    parser.add_argument("b", metavar="B", help="the samples")
    parser.add_argument(
        "--metrics", default="fid,kid,prdc", metavar="M,M,...", help="of those below (default: fid,kid,prdc)"
    )
    _add_sources(parser)


def add_trilemma(parser: ArgumentParser) -> None:
    """The options of `fastgen trilemma`."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folders of runs or checkpoints of the same data")
    _add_corners(parser, "trilemma.png")


def add_compare(parser: ArgumentParser) -> None:
    """The options of `fastgen compare`."""
    parser.add_argument("models", metavar="MODEL", nargs="+", help="as `fastgen train` takes them")
    parser.add_argument("--data", required=True, metavar="DATA", help="a name, a folder, or a file")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each model (default: 3)")
    parser.add_argument("--out", default=None, metavar="FOLDER", help="where runs are (default: runs/compare-DATA)")
    parser.add_argument("--epochs", type=int, default=None, metavar="N", help="passes over the data, for all models")
    parser.add_argument("--quiet", action="store_true", default=False, help="a line for each epoch instead of a bar")
    _add_corners(parser, "compare.png")


def _add_corners(parser: ArgumentParser, picture: str) -> None:
    parser.add_argument("-n", type=int, default=None, metavar="N", help="samples of each (default: up to 1000)")
    parser.add_argument("--features", default=None, metavar="NAME", help="as for score (default: what suits the data)")
    parser.add_argument("--weights", default=None, metavar="FILE", help="of Inception")
    parser.add_argument("--picture", default=picture, metavar="FILE", help=f".png, .pdf or .svg (default: {picture})")
    parser.add_argument("--json", default=None, metavar="FILE", help="write all numbers")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (default: 0)")
    add_device(parser)


def _add_sources(parser: ArgumentParser) -> None:
    parser.add_argument("--features", default="inception", metavar="NAME", help="default: inception")
    parser.add_argument("--weights", default=None, metavar="FILE", help="of Inception (default: downloaded once)")
    parser.add_argument(
        "--resize",
        choices=("clean-fid", "pytorch-fid"),
        default="clean-fid",
        help="how images get Inception's size: antialiased (clean-fid, default) or not (pytorch-fid)",
    )
    parser.add_argument("--image-size", type=int, default=None, metavar="N", help="scale and crop pictures first")
    parser.add_argument("--background", default=None, metavar="COLOR", help="of transparent pictures (default: white)")
    parser.add_argument("--levels", type=int, default=None, metavar="N", help="intensities of an array's integers")
    parser.add_argument("--skip-bad", action="store_true", default=False, help="pass over pictures that are no good")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default: 64)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what metrics draw (default: 0)")
    parser.add_argument("--json", action="store_true", default=False, help="print a JSON object")
    add_device(parser)
