"""The fixed words of the book's pages: what a budget, a verdict and a term mean, and how to run the rest."""

NO_FINDING = "These are runs of the <b>smoke</b> budget: they show that the pipeline works, and none of their numbers is a finding."

MADE_UP = "These runs see images that were made up on the spot: they show what the machinery does, and their verdicts say nothing of the papers."

LENS = """\
<p>Every run is written in its paper's own numbers. A budget maps them to what a machine affords: image and patch size, width,
epochs, batch. Ratios that carry the science (mask ratio, layer-wise decay, warm-up and stage fractions) are never mapped; except at
smoke and brief neither is depth. The learning rate follows the linear scaling rule from the resulting batch. At the budget
<code>paper</code> nothing changes. Each paper's notebook prints the mapping of its runs.</p>
"""
VERDICTS = """\
<p>A claim is one or more checks on runs. Results are means over seeds with a 95 % interval of Student's t; two runs on the same
seeds share data order and initial weights and are compared seed by seed. A check is decided when its interval lies wholly on one
side of its bound, so nothing is decided without an interval unless it is computed; a committed benchmark is decided by the quartiles
of its rounds. Of a claim whose checks were run in part, each check that was run keeps its verdict, but the claim holds only with all
of them. An undecided check says how many more seeds
would decide it, and which way, were the effect as measured. Where a sweep peaks is judged by a parametric bootstrap over its points. The
intervals are over seeds on one set of validation images (at <code>tiny</code> and <code>brief</code> 500, so that one image is 0.2 points)
and each check is judged by itself, without a correction for there being many.</p>
"""
NOT_COMPARED = """\
<p>Accuracies at a smaller scale stand beside the papers' for orientation; they are not judged by them. The status of such a number is the
verdict of the claim that it carries. Detection and segmentation are not part of the workbook.</p>
"""
PHOTOS = """\
<p><code>photos</code> is made on the spot from the photographs that scikit-image carries: layouts (bands, rings, spirals, ...)
drawn with two photographic textures each. The label is the global layout. It is a synthetic task with natural texture and stands
in for real images on a machine without any; numbers on it compare methods with one another, not with published ones.</p>
"""
GLOSSARY = {
    "budget": "a lens: what a machine makes of the papers' image sizes, widths, epochs and batches; listed above",
    "grid": "the papers' full ablations, a pipeline file of its own: make grid",
    "planner": "python -m replicate plan: what runs cost, in multiply-adds, memory and hours, before anything is spent",
    "LLRD": "layer-wise learning-rate decay: each block's rate is that of the block above it times this factor",
    "P2Dist": "mean distance from a masked patch's pixels to the nearest visible pixel, in pixels of a 16-pixel patch",
    "gamma, beta": "exponent of the Difficulty-Flatten Loss; P2Dist beyond which a masked patch is not decoded",
    ".beton": "FFCV's file of a whole data set; 500_95: longest side at most 500 pixels, JPEG quality 95",
    "seek index, fused resize": "two ways of the package's own reader to decode a crop without the rest of the image",
    "s1 ... s6": "DailyMAE's schedules of image size and mask ratio; s5 is the palindrome 224, 192, 224",
    "trend": "a number whose claim holds at this scale; the number itself is not expected to agree",
}
RUN_IT = """\
<p>From a checkout of the repository: <code>make repro</code> sets everything up and runs the headline of all five papers on a laptop,
without a download of images; its README says how to point it at Tiny-ImageNet or at ImageNet. Every claim on these pages lists the
commands that train its runs again.</p>
"""
EXPLORE = """\
<p>Six notebooks with sliders (masking, reconstruction, HOG, schedules, loader, a recipe of your own) are not part of these pages,
since they compute as you move: <code>make lab</code>, then <code>notebooks/explore_*.ipynb</code>.</p>
"""
