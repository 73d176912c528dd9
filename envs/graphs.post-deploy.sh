# Runs in the new environment, from the project's root: the package itself comes from the checkout.
python -m pip install --no-deps .
