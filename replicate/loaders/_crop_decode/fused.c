static bool can_fuse(context *c, const request *r) { (void)c; (void)r; return false; }
static void resize_fused(context *c, const request *r, uint8_t *out, int64_t out_height, int64_t out_width)
{ (void)c; (void)r; (void)out; (void)out_height; (void)out_width; }
