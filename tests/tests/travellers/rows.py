import traceback
failed = []
for row in rows:
    begun = time.monotonic()
    try:
        row()
        print(row.__name__, f'{time.monotonic() - begun:.1f} s', flush=True)
    except Exception:
        traceback.print_exc()
        failed.append(row.__name__)
assert not failed, failed
