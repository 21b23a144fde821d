// maskx.pt without Python: loads the file, feeds it one picture, prints what is found.
//
//     boxes maskx.pt OPERATORS picture.ppm [score_threshold]
//
// OPERATORS is the library with torchvision's operators (roi_align and nms), which the file needs before it can be
// loaded: _C_stable.so or _C.so in the folder of the wheel torchvision, or libtorchvision.so of one's own build.
// The picture is a PPM of 8 bits (P6): `convert photo.jpg picture.ppm`. How to build: CMakeLists.txt beside this file.

#include <dlfcn.h>

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

#include <torch/script.h>

namespace {

// uint8 [3, height, width], RGB, as the network takes it.
torch::Tensor read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  int64_t width = 0, height = 0, most = 0;
  if (!(file >> kind >> width >> height >> most) || kind != "P6" || width < 1 || height < 1 || most != 255)
    throw std::runtime_error(path + ": expected a PPM of 8 bits (P6)");
  file.get();
  torch::Tensor pixels = torch::empty({height, width, 3}, torch::kUInt8);
  if (!file.read(static_cast<char*>(pixels.data_ptr()), pixels.numel()))
    throw std::runtime_error(path + ": cut short");
  return pixels.permute({2, 0, 1}).contiguous();
}

void print_boxes(const std::string& model_path, const std::string& picture, float score_threshold) {
  torch::jit::ExtraFilesMap extra{{"metadata.json", ""}};  // names, ids, input sizes, what the file requires
  torch::jit::Module model = torch::jit::load(model_path, torch::kCPU, extra);
  // One plan, made before the first run: else TorchScript rewrites the network by what the first pictures show.
  torch::jit::FusionStrategy none{{torch::jit::FusionBehavior::STATIC, 0}};
  torch::jit::setFusionStrategy(none);

  const torch::Tensor image = read_ppm(picture);
  const int64_t labels = model.attr("mask_table").toTensor().size(0);  // the classes, and background as label 0
  c10::InferenceMode no_gradients;
  c10::List<torch::Tensor> images;
  images.push_back(image);
  const auto answers =
      model.forward({images,
                     torch::tensor({{image.size(1), image.size(2)}}, torch::kInt64),  // of the upright original
                     torch::full({1}, score_threshold),
                     torch::full({1}, 100, torch::kInt64),            // detections at most
                     torch::ones({1, labels}, torch::kBool),          // the labels asked for
                     torch::ones({1}, torch::kBool)})                 // with masks
          .toList();
  const auto found = answers.get(0).toGenericDict();
  const torch::Tensor boxes = found.at("boxes").toTensor(), scores = found.at("scores").toTensor();
  const torch::Tensor classes = found.at("labels").toTensor(), offsets = found.at("rle_offsets").toTensor();
  const torch::Tensor counts = found.at("rle_counts").toTensor();
  for (int64_t i = 0; i < scores.size(0); ++i) {
    // Run lengths down the columns of the original, as COCO's; the first is of zeros, every second one of the mask.
    const torch::Tensor runs = counts.slice(0, offsets[i].item<int64_t>(), offsets[i + 1].item<int64_t>());
    std::cout << "label " << classes[i].item<int64_t>() << " score " << scores[i].item<float>() << " box";
    for (int64_t side = 0; side < 4; ++side) std::cout << ' ' << boxes[i][side].item<float>();
    std::cout << " mask " << runs.slice(0, 1, runs.size(0), 2).sum().item<int64_t>() << " pixels\n";
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4 || argc > 5) {
    std::cerr << "usage: boxes maskx.pt OPERATORS picture.ppm [score_threshold]\n";
    return 2;
  }
  try {
    // Whoever links libtorchvision needs no dlopen, but -Wl,--no-as-needed: no symbol of it is called by name.
    if (dlopen(argv[2], RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
    print_boxes(argv[1], argv[3], argc == 5 ? std::stof(argv[4]) : 0.5f);
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
  }
  return 0;
}
