from saishiki.runtime.bench.target import check_target


def test_p99_is_over_all_images_of_both_measurements(made):
    report = made.report(made.runner([*[10.0] * 99, 50.0]))
    (check,) = check_target(report, 10, named=False)
    assert (check.n, check.p99_ms, check.met) == (200, 10.0, True)


def test_p99_of_few_is_the_slowest(made):
    report = made.report(made.runner([10.0, 10.0, 30.0]))
    (check,) = check_target(report, 20, named=False)
    assert not check.met
    assert str(check) == "onnxruntime:cpu:fp32: p99 of one image is 30 ms, the slowest of 6: over 20 ms"
    assert check_target(report, 30, named=False)[0].met


def test_the_slow_images_of_the_second_measurement_count(made):
    runner = made.runner([10.0] * 3)
    slow = made.row("image again", [99.0])
    rows = tuple(slow if row.subject == "image again" else row for row in runner.rows)
    report = made.report(type(runner)(**{**vars(runner), "rows": rows}))
    assert not check_target(report, 50, named=False)[0].met


def test_where_none_is_named_the_first_runner_counts(made):
    report = made.report(made.runner([10.0], backend="tensorrt"), made.runner([99.0]))
    assert [check.met for check in check_target(report, 20, named=False)] == [True]
    assert [check.met for check in check_target(report, 20, named=True)] == [True, False]
