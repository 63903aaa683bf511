# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # From patients to a report
#
# Low-dose PET is noisy. petscale trains a network that estimates the full-dose image from a low-dose image,
# and measures how well it does. This notebook goes through all steps with phantoms: computed patients, whose
# truth is known.
#
# Everything here is so small that it runs in about a minute on two cores. The network therefore learns next
# to nothing. The last section says what to change for real work.

# %%
import petscale

# %% [markdown]
# ## 1. Patients
#
# A cohort is a folder of examinations. Each of these four patients has a CT, the labels of organs and
# lesions, the true activity, a simulated full-dose scan, and a scan at a twentieth of the dose: the dose
# reduction factor (DRF) is 20.

# %%
body = petscale.PhantomConfig(shape=(48, 40, 40), spacing_mm=(20.0, 11.0, 11.0), num_lesions=2)
scan = petscale.LowDoseConfig(million_prompts_per_bed=20.0, iterations=1)
made = petscale.phantom("cohort", 4, body=body, scan=scan, drf=[20])
cohort = made.cohort
cohort.table()

# %% [markdown]
# A cohort behaves as a dict of cases, and a case as a dict of images. A notebook shows an image as its
# maximum intensity projection from the front, in a fixed window of SUV 0 to 7.

# %%
case = cohort["phantom-000"]
full, low = case["full"], case["low_drf20"]
low

# %% [markdown]
# The voxels are an array with axes (z, y, x). The grid says where they lie. Here: the SUVmean of the liver in
# both scans.

# %%
liver = case["labels"].voxels == next(value for value, name in case.labels.items() if name == "liver")
print("spacing (z, y, x):", full.grid.spacing_mm, "mm")
print(f"SUVmean of the liver: full dose {full.voxels[liver].mean():.2f}, low dose {low.voxels[liver].mean():.2f}")
print(f"noise in the liver (SD): full dose {full.voxels[liver].std():.2f}, low dose {low.voxels[liver].std():.2f}")

# %% [markdown]
# ## 2. Training
#
# A configuration has sections and fields. What is not named keeps the default of the system, which is that of
# its paper. One of the four patients is kept for testing: the network never sees this patient.

# %%
tiny = petscale.configure(
    {
        "recipe.patch": (24, 24, 24),
        "recipe.patches_per_case": 1,
        "recipe.context_patches": 2,
        "recipe.critic_channels": 2,
        "recipe.rois": (),
        "recipe.phase_samples": (12, 0, 0, 0),
        "loop.log_every": 1,
        "loop.picture_every": 0,
    },
    recipe="sgsgan",
)
run = petscale.train("cohort", "run", config=tiny)
print("training patients:", run.roles["train"], "test patients:", run.roles["test"])

# %% [markdown]
# The same call continues a run that was interrupted. The losses so far are a table:

# %%
metrics = run.metrics()
metrics[["step", "phase", "loss/content", "patches_per_s"]]

# %% [markdown]
# ## 3. A restored image
#
# The network takes a whole image of any size and gives one on the same grid, in SUV.

# %%
test = cohort[run.roles["test"][0]]
restored = petscale.synthesize(run, test["low_drf20"])
restored

# %% [markdown]
# It can be saved as NIfTI, or handed to nibabel, SimpleITK or torch without any change of voxels or geometry.

# %%
restored.save("restored.nii.gz")
volume = restored.to_nibabel()
print(volume.shape, "voxels along (x, y, z)")

# %% [markdown]
# ## 4. Scores
#
# The restored image must be nearer to the full dose than the low dose is, and nearer than a simple Gaussian
# filter, which needs no network. petscale scores all three on the test patients.

# %%
scores = petscale.evaluate(run, cohort)["low_drf20"]
summary = scores.summary()
shown = summary.query("preset == 'native' and region in ('body', 'lesions')")
shown[["image", "region", "metric", "units", "mean"]]

# %% [markdown]
# ## 5. The report
#
# One page with pictures, scores and their definitions, training curves, and how to repeat all this. It is a
# single file that needs no network, and it shows itself here.

# %%
page = petscale.report(run, cohort)
page

# %% [markdown]
# ## 6. For real work
#
# - Your own scans: `petscale.ingest("scans", "cohort", pet="pet", ct="ct")` reads DICOM or NIfTI.
# - Low doses of your own full-dose scans: `petscale.simulate("cohort", "simulated", drf=[4, 20])`.
# - The system's own settings: leave the fields out, name the system with `recipe`, and use a GPU with `device="cuda"`.
# - A search of settings on validation patients: `petscale.tune("cohort", "study", recipe="sgsgan", trials=50)`.
