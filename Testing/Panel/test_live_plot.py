"""The plot of a training: which lines and dots are there, by their colors."""

from __future__ import annotations

import unittest

import harness
import qt


def colors(plot_label: qt.QLabel) -> set[tuple[int, int, int]]:
    image = plot_label.pixmap.toImage()
    pixels = (image.pixelColor(x, y) for x in range(image.width()) for y in range(image.height()))
    return {(color.red(), color.green(), color.blue()) for color in pixels}


class LivePlotTest(unittest.TestCase):
    def setUp(self) -> None:
        harness.open_module("TCurLoraSegment")
        from TCurLoraSegmentLib.widgets import live_plot

        self.module = live_plot
        self.label = qt.QLabel()
        self.plot = live_plot.LivePlot(self.label)

    def add_losses(self, count: int) -> None:
        for number in range(count):
            self.plot.add_loss(1 / (1 + number))

    def test_nothing_to_draw_draws_nothing(self) -> None:
        self.plot.next_training()
        self.add_losses(1)
        self.plot.draw()
        self.assertFalse(self.plot.drawn)

    def test_trainings_that_are_over_step_back_behind_the_one_that_runs(self) -> None:
        self.add_losses(20)
        self.plot.draw()
        self.assertIn(self.module.NOW, colors(self.label))
        self.assertNotIn(self.module.EARLIER, colors(self.label))
        self.plot.next_training()
        self.plot.next_training()  # a stage without a loss is no training
        self.plot.draw()
        self.assertIn(self.module.EARLIER, colors(self.label))
        self.assertEqual(len(self.plot._trainings), 2)
        self.plot.clear()
        self.assertFalse(self.plot.drawn)

    def test_each_fold_has_a_dot_for_base_and_adapted(self) -> None:
        self.plot.add_dice("base", 0.7)
        self.plot.draw()
        self.assertFalse(self.plot.drawn)
        self.plot.add_dice("adapted", 0.9)
        self.plot.draw()
        self.assertLessEqual({self.module.BASE, self.module.ADAPTED}, colors(self.label))

    def test_a_long_training_is_thinned_out_with_those_before_it(self) -> None:
        self.add_losses(100)
        self.plot.next_training()
        self.add_losses(self.module.MAXIMUM_POINTS + 1)
        self.assertEqual([len(losses) for losses in self.plot._trainings], [50, self.module.MAXIMUM_POINTS // 2 + 1])
        self.add_losses(2)
        self.assertEqual(len(self.plot._trainings[-1]), self.module.MAXIMUM_POINTS // 2 + 2)


if __name__ == "__main__":
    unittest.main()
