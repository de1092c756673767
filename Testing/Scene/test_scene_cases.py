from __future__ import annotations

import sys
import unittest
from pathlib import Path

import numpy as np
import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scenes import (
    LEFT_KIDNEY,
    LIVER,
    RIGHT_KIDNEY,
    SIZE,
    TISSUE,
    SceneTest,
    add_labelmap,
    add_segmentation,
    add_study,
    add_volume,
    hierarchy,
    put_into_study,
    straight,
)

from TCurLoraSegmentLib.scene_cases import (
    RESULT_ATTRIBUTE,
    SHAPE_ATTRIBUTE,
    CasePair,
    SceneStructure,
    accept_labels,
    alike,
    is_uncorrected,
    matched_by_terminology,
    pair_scene,
    structures_of,
)
from TCurLoraSegmentLib.scene_labels import is_telling, shape_of
from TCurLoraSegmentLib.scene_subjects import subject_of, subjects_of

MASK = np.zeros(SIZE[::-1], bool)
MASK[3:6, 4:9, 2:5] = True


def segmentation(name: str, volume=None, **more):
    return add_segmentation(name, straight(), {"A": MASK}, volume, **more)


def pair(volume, labels) -> CasePair:
    return CasePair(volume.GetID(), labels.GetID())


class PairSceneTest(SceneTest):
    def paired(self):
        return self.assertSceneUntouched(pair_scene)

    def test_empty_scene(self):
        self.assertEqual(self.paired(), ([], []))

    def test_reference_decides_before_study_and_name(self):
        first, second = add_volume("Kopf"), add_volume("Hals")
        one, two = segmentation("Hals", first), segmentation("Kopf", second)
        study = add_study()
        for node in (first, two):
            put_into_study(node, study)
        self.assertEqual(self.paired(), ([pair(first, one), pair(second, two)], []))

    def test_study_decides_before_name(self):
        first, second = add_volume("a"), add_volume("b")
        one, two = segmentation("b"), add_labelmap("a", MASK.astype(np.uint8), straight())
        for study, nodes in ((add_study("P1"), (first, one)), (add_study("P2"), (second, two))):
            for node in nodes:
                put_into_study(node, study)
        self.assertEqual(self.paired(), ([pair(first, one), pair(second, two)], []))

    def test_name_decides_among_the_volumes_of_a_study(self):
        study, other = add_study("P1"), add_study("P2")
        t1, t2, elsewhere = add_volume("T1"), add_volume("T2"), add_volume("T2 ")
        labels = segmentation("T2 segmentation")
        for node in (t1, t2, labels):
            put_into_study(node, study)
        put_into_study(elsewhere, other)
        self.assertEqual(self.paired()[0], [pair(t2, labels)])

    def test_names_pair_up_in_the_ways_that_files_are_named(self):
        names = {
            "hippocampus_001": "hippocampus_001_1",  # as Slicer names the second node of one name
            "海馬 2": "海馬 2 Segmentation",
            "Müller T1": "müller_t1-label",
            "case_12": "case_12_seg",
            "case_1": "case_1_mask",
            "scan7.nii.gz": "scan7.seg.nrrd",
        }
        expected = []
        for volume_name, labels_name in names.items():
            expected.append((add_volume(volume_name), labels_name))
        pairs = [pair(volume, segmentation(labels_name)) for volume, labels_name in reversed(expected)]
        self.assertEqual(self.paired(), (pairs[::-1], []))

    def test_says_what_could_not_be_paired(self):
        for name in ("Kopf", "Hals", "Bein"):
            add_volume(name)
        segmentation("Arm")
        pairs, notes = self.paired()
        self.assertEqual(pairs, [])
        self.assertEqual(len(notes), 2)
        self.assertIn("'Arm'", notes[0])
        self.assertRegex(notes[1], r"3 volumes have no segmentation: 'Kopf', 'Hals', 'Bein'")

    def test_two_volumes_of_one_name_are_not_guessed(self):
        add_volume("T1")
        add_volume("T1")
        segmentation("T1 seg")
        pairs, notes = self.paired()
        self.assertEqual(pairs, [])
        self.assertRegex(notes[0], "not clear which volume 'T1 seg' belongs to: 'T1', 'T1'")

    def test_two_segmentations_of_one_volume_are_not_guessed(self):
        volume = add_volume("T1")
        for name in ("Reader A", "Reader B"):
            segmentation(name, volume)
        pairs, notes = self.paired()
        self.assertEqual(pairs, [])
        self.assertEqual(len(notes), 1)
        self.assertRegex(notes[0], "'T1' has 2 segmentations: 'Reader A', 'Reader B'")

    def test_results_of_a_model_wait_until_they_are_accepted(self):
        volume = add_volume("T1")
        labels = segmentation("T1 result", volume)
        labels.SetAttribute(RESULT_ATTRIBUTE, "T1")
        pairs, notes = self.paired()
        self.assertEqual(pairs, [])
        self.assertIn("'T1 result' was made by a model", notes[0])
        accept_labels(labels)
        self.assertEqual(self.paired(), ([pair(volume, labels)], []))

    def test_hidden_nodes_are_no_cases_but_a_hidden_volume_may_have_one(self):
        hidden = add_volume("intern")
        hidden.SetHideFromEditors(True)
        unseen = segmentation("intern seg", hidden)
        unseen.SetHideFromEditors(True)
        self.assertEqual(self.paired(), ([], []))
        labels = segmentation("sichtbar", hidden)
        self.assertEqual(self.paired(), ([pair(hidden, labels)], []))

    def test_says_why_a_volume_cannot_be_used(self):
        empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Leer")
        labels = segmentation("seg")
        labels.SetNodeReferenceID(
            slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole(), empty.GetID()
        )
        pairs, notes = self.paired()
        self.assertEqual(pairs, [])
        self.assertIn("'Leer' has no voxels", notes[0])

    def test_label_map_is_never_the_volume(self):
        volume = add_volume("T1")
        labels = add_labelmap("T1-label", MASK.astype(np.uint8), straight())
        labels.SetAttribute("AssociatedNodeID", volume.GetID())
        other = add_labelmap("T1-label-label", MASK.astype(np.uint8), straight())
        other.SetAttribute("AssociatedNodeID", labels.GetID())
        pairs, _notes = self.paired()
        self.assertNotIn(labels.GetID(), [p.volume_id for p in pairs])


class StructuresTest(SceneTest):
    def structures(self, *labels):
        volume = add_volume()
        return self.assertSceneUntouched(lambda: structures_of([pair(volume, node) for node in labels]))

    def test_counts_by_name_whatever_the_number_and_spelling(self):
        voxels = np.zeros(SIZE[::-1], np.uint16)
        voxels[1], voxels[5] = 700, 2
        labelmap = add_labelmap("map", voxels, straight(), {700: "Anterior_Hippocampus", 2: "Köpfchen"})
        one = add_segmentation("a", straight(), {"anterior hippocampus": MASK, "leer": MASK & False})
        two = add_segmentation(
            "b", straight(), {"anterior hippocampus": MASK, "KO\u0308PFCHEN": MASK}
        )  # an umlaut of two characters
        found = self.structures(one, two, labelmap)
        self.assertEqual([s.name for s in found], ["anterior hippocampus", "leer", "KO\u0308PFCHEN"])
        self.assertEqual([s.cases for s in found], [3, 0, 2])
        self.assertEqual(found[0].aliases, ("anterior hippocampus", "Anterior_Hippocampus"))
        np.testing.assert_allclose(found[0].color, one.GetSegmentation().GetNthSegment(0).GetColor())

    def test_label_map_has_names_and_colors_of_its_table(self):
        voxels = np.zeros(SIZE[::-1], np.int32)
        voxels[1], voxels[5], voxels[7] = 3, 99_999, 1
        labels = add_labelmap("map", voxels, straight(), {3: "Leber ü", 1: "background"})
        colors = labels.GetDisplayNode().GetColorNode()
        colors.SetTerminologyFromString(3, LIVER)
        found = self.structures(labels)
        self.assertEqual([s.name for s in found], ["Leber ü", "label 99999"])
        np.testing.assert_allclose(found[0].color, (0.1, 0.5, 3 / 7), atol=1 / 255)
        self.assertIn("10200004", found[0].terminology)
        self.assertEqual(found[1].terminology, "")

    def test_label_map_without_a_table(self):
        labels = slicer.util.addVolumeFromArray(
            MASK.astype(np.uint8) * 4, ijkToRAS=straight(), nodeClassName="vtkMRMLLabelMapVolumeNode"
        )
        labels.GetDisplayNode().SetAndObserveColorNodeID("")
        self.assertEqual([s.name for s in self.structures(labels)], ["label 4"])

    def test_terminology_unites_names_only_where_it_tells_a_structure(self):
        one = add_segmentation("a", straight(), {"Leber": MASK, "x": MASK}, terminology={"Leber": LIVER, "x": TISSUE})
        two = add_segmentation("b", straight(), {"liver": MASK, "y": MASK}, terminology={"liver": LIVER, "y": TISSUE})
        found = self.structures(one, two)
        self.assertEqual([s.aliases for s in found], [("Leber", "liver"), ("x",), ("y",)])
        self.assertEqual([s.cases for s in found], [2, 1, 1])

    def test_terminology_does_not_unite_what_a_case_tells_apart(self):
        entries = {"upper lobe": LIVER, "lower lobe": LIVER, "lobe": LIVER}
        one = add_segmentation("a", straight(), {"upper lobe": MASK, "lower lobe": MASK}, terminology=entries)
        two = add_segmentation("b", straight(), {"lobe": MASK}, terminology=entries)
        self.assertEqual([s.name for s in self.structures(one, two)], ["upper lobe", "lower lobe", "lobe"])

    def test_left_and_right_differ(self):
        one = add_segmentation("a", straight(), {"Niere l": MASK}, terminology={"Niere l": LEFT_KIDNEY})
        two = add_segmentation("b", straight(), {"kidney": MASK}, terminology={"kidney": RIGHT_KIDNEY})
        self.assertEqual([s.name for s in self.structures(one, two)], ["Niere l", "kidney"])

    def test_surfaces_count(self):
        node = add_segmentation("a", straight(), {"A": MASK, "leer": MASK & False})
        node.CreateClosedSurfaceRepresentation()
        node.GetSegmentation().SetSourceRepresentationName("Closed surface")
        node.GetSegmentation().RemoveRepresentation("Binary labelmap")
        self.assertEqual([(s.name, s.cases) for s in self.structures(node)], [("A", 1), ("leer", 0)])

    def test_nodes_that_are_gone_or_hold_no_labels_are_passed_over(self):
        gone = segmentation("weg")
        half = add_labelmap("halb", np.full(SIZE[::-1], 0.5, np.float32), straight())
        good = segmentation("gut")
        missing = pair(add_volume(), gone)
        slicer.mrmlScene.RemoveNode(gone)
        self.assertEqual([s.name for s in structures_of([missing, pair(half, half), pair(good, good)])], ["A"])


class TerminologyTest(unittest.TestCase):
    HIPPOCAMPUS = (
        "Segmentation category and type - DICOM master list~SCT^123037004^Anatomical Structure"
        "~SCT^5366008^Hippocampus~^^~Anatomic codes - DICOM master list~^^~^^"
    )
    ANTERIOR = HIPPOCAMPUS.replace("Hippocampus~^^", "Hippocampus~SCT^255549009^Anterior")
    POSTERIOR = HIPPOCAMPUS.replace("Hippocampus~^^", "Hippocampus~SCT^255551008^Posterior")
    LEFT = HIPPOCAMPUS.replace("Hippocampus~^^", "Hippocampus~SCT^7771000^Left")

    def matched(self, terminology: str) -> list[str]:
        base = {"vorne": self.ANTERIOR, "hinten": self.POSTERIOR, "Leber": LIVER, "ohne": ""}
        return matched_by_terminology(SceneStructure("海馬", (1, 0, 0), terminology, 1, ("海馬",)), base)

    def test_same_codes_then_parts(self):
        self.assertEqual(self.matched(self.POSTERIOR), ["hinten"])
        self.assertEqual(self.matched(self.POSTERIOR.replace("Posterior", "hinterer Teil")), ["hinten"])
        self.assertEqual(self.matched(self.HIPPOCAMPUS), ["vorne", "hinten"])
        self.assertEqual(self.matched(LIVER), ["Leber"])

    def test_what_does_not_tell_matches_nothing(self):
        for entry in ("", TISSUE, LEFT_KIDNEY, self.LEFT):
            self.assertEqual(self.matched(entry), [])


class SubjectTest(SceneTest):
    def test_patient_then_study_then_node(self):
        first, follow_up, other, alone, loose = (add_volume(f"v{n}") for n in range(5))
        put_into_study(first, add_study("P1", "before"))
        put_into_study(follow_up, add_study("P1", "after"))
        put_into_study(other, add_study("P2"))
        tree = hierarchy()
        put_into_study(alone, tree.CreateStudyItem(tree.GetSceneItemID(), "study of nobody"))
        subjects = [subject_of(node).key for node in (first, follow_up, other, alone, loose)]
        self.assertEqual(subjects[0], subjects[1])
        self.assertEqual(len(set(subjects)), 4)
        self.assertIn(loose.GetName(), subjects[4])

    def test_one_patient_in_two_branches(self):
        nodes = [add_volume("a"), add_volume("b")]
        for number, node in enumerate(nodes):
            study = add_study(f"branch {number}")
            put_into_study(node, study)
            hierarchy().SetItemUID(hierarchy().GetItemParent(study), "DICOM", "PID-1")
        self.assertEqual(subject_of(nodes[0]).key, subject_of(nodes[1]).key)

    def test_person_is_what_names_share_but_for_side_and_visit(self):
        for one, other in (
            ("IXI012-HH-1211_L", "IXI012-HH-1211_R"),
            ("sub-003_ses-1_T1w", "sub-003_ses-2_T1w"),
            ("Müller left", "Müller right"),
            ("p7 visit2.nii.gz", "p7 visit10.nii.gz"),
            ("lh.042", "rh_042"),
        ):
            self.assertEqual(subject_of(add_volume(one)).key, subject_of(add_volume(other)).key, one)
        for one, other in (
            ("patient_1", "patient_2"),
            ("T1", "T1_1"),
            ("sub-01_L", "sub-02_L"),
            ("Wright", "Leftwich"),
            ("left", "right"),
            ("visitor1", "visitor2"),
        ):
            self.assertNotEqual(subject_of(add_volume(one)).key, subject_of(add_volume(other)).key, one)
        self.assertEqual(subject_of(add_volume("IXI077-HH-1211_L")).label, "IXI077-HH-1211")

    def test_what_the_user_calls_a_person_counts_and_joins_an_equal_one(self):
        volumes = [add_volume(name) for name in ("a", "b", "c")]
        keys = [subject.key for subject in subjects_of(volumes, ["", "A", "somebody"])]
        self.assertEqual(keys[0], keys[1])
        self.assertNotEqual(keys[0], keys[2])

    def test_names_that_the_user_gives_join_labels(self):
        volume = add_volume("T1")
        labels = segmentation("T1 seg", volume)
        again = add_segmentation("T1 other", straight(), {"b": MASK}, add_volume("T2"))
        pairs = [pair(volume, labels), pair(slicer.util.getNode("T2"), again)]
        self.assertEqual([s.name for s in structures_of(pairs)], ["A", "b"])
        (one,) = structures_of(pairs, {"A": "hippocampus", "b": "hippocampus"})
        self.assertEqual((one.name, one.cases, one.members), ("hippocampus", 2, (0, 1)))
        self.assertEqual(set(one.aliases), {"hippocampus", "A", "b"})

    def test_names_with_the_same_words_are_alike(self):
        volume = add_volume("T1")
        labels = add_segmentation("T1 seg", straight(), {"left hippocampus": MASK, "Hippocampus_Left": ~MASK}, volume)
        found = structures_of([pair(volume, labels)])
        self.assertEqual(alike(found), [("left hippocampus", "Hippocampus_Left")])

    def test_untelling_names(self):
        for name in ("Segment_1", "1", "label 2", "Label3", "mask", "Segmentation_12", "ROI 4"):
            self.assertFalse(is_telling(name), name)
        for name in ("hippocampus", "CA1", "L5", "tumor mask", "Segmento caudado"):
            self.assertTrue(is_telling(name), name)

    def test_a_correction_is_noticed_and_a_new_name_is_none(self):
        volume = add_volume("T1")
        labels = segmentation("T1 result", volume)
        self.assertFalse(is_uncorrected(labels))
        labels.SetAttribute(SHAPE_ATTRIBUTE, shape_of(labels))
        labels.GetSegmentation().GetNthSegment(0).SetName("B")
        self.assertTrue(is_uncorrected(labels))
        segment = labels.GetSegmentation().GetNthSegmentID(0)
        changed = MASK.astype(np.uint8)
        changed[3, 4, 2] = 0
        slicer.util.updateSegmentBinaryLabelmapFromArray(changed, labels, segment, volume)
        self.assertFalse(is_uncorrected(labels))


if __name__ == "__main__":
    unittest.main()
